"""The quantization toolkit.

Grids, transforms, rounding, calibration, the quantized linear and its artifact.
Nothing here knows about experiments, stores or tables; methods combine these parts.
"""
