"""Kernels in Triton, for CUDA devices of compute capability 8.0 to 9.0; needs ``triton``."""
