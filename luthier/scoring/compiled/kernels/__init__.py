"""What runs as machine code. The types here are numba's, which Python's annotations do not tell."""
