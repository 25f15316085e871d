"""Tokenizers: repair of what a model folder lacks."""
