"""``harness.quant.layers.activation`` under its name of 0.1.0, for plug-ins."""

from harness.quant.layers.activation import *  # noqa: F403
