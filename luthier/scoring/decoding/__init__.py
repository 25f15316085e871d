"""Answers to many prompts: the fast way where a model's kind allows it, and transformers' own `generate` elsewhere."""

from __future__ import annotations

from luthier.scoring.decoding.answering import answer
from luthier.scoring.decoding.generating import generate

__all__ = ["answer", "generate"]
