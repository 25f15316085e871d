"""Engines, one file each: on which devices a step is computed, and how gradients meet."""
