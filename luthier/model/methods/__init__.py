"""Training methods, one file each: which weights learn, and how."""
