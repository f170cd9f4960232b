"""``harness.quant.layers.apply`` under its name of 0.1.0, for plug-ins."""

from harness.quant.layers.apply import *  # noqa: F403
