"""Tokenizers: train, inspect, extend, and repair of what a model folder lacks."""
