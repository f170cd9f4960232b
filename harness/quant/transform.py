"""``harness.quant.layers.transform`` under its name of 0.1.0, for plug-ins."""

from harness.quant.layers.transform import *  # noqa: F403
