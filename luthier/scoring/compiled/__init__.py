"""Kernels for processors, written in Python and compiled by numba where the extra `cpu` is installed."""
