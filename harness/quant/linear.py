"""``harness.quant.layers.linear`` under its name of 0.1.0, for plug-ins."""

from harness.quant.layers.linear import *  # noqa: F403
