"""Kernels: quantized linears computed on integer units.

A layer that runs here multiplies codes, not values on a grid: what is timed is what runs. Which
kernel takes a layer is decided by ``dispatch`` from the layer, the device and the processor; a row
runs by kernels whole or not at all.
"""
