"""Metrics, one file each: from what is true and what was predicted to a number."""
