"""``harness.quant.calibration.walk`` under its name of 0.1.0, for plug-ins."""

from harness.quant.calibration.walk import *  # noqa: F403
