"""Kernels that compute quantized linears with integer arithmetic."""
