"""Training stages, one file each: what is learnt from a batch."""
