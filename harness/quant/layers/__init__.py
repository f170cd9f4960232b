"""Quantized layers: grids, transforms, the quantized linear, its artifact."""
