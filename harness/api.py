"""All that the author of a plug-in imports; importing it costs no torch."""

from __future__ import annotations

from harness.bits import IDENTITY_WIDTH, BitSpec
from harness.errors import HarnessError, UnsupportedError
from harness.method import (
    SAME_BUDGET,
    SAME_TARGETS,
    SIMULATED,
    Deviation,
    LayerReport,
    Method,
    QuantContext,
    QuantReport,
    Reproduction,
    Unsupported,
)
from harness.options import (
    Amount,
    Branches,
    Count,
    Modulation,
    NoOptions,
    Prefix,
    Rounding,
    SampleOptions,
    Share,
    SpacedOptions,
    TargetOptions,
    Whole,
    options,
)

__all__ = [
    "IDENTITY_WIDTH",
    "SAME_BUDGET",
    "SAME_TARGETS",
    "SIMULATED",
    "Amount",
    "BitSpec",
    "Branches",
    "Count",
    "Deviation",
    "HarnessError",
    "LayerReport",
    "Method",
    "Modulation",
    "NoOptions",
    "Prefix",
    "QuantContext",
    "QuantReport",
    "Reproduction",
    "Rounding",
    "SampleOptions",
    "Share",
    "SpacedOptions",
    "TargetOptions",
    "Unsupported",
    "UnsupportedError",
    "Whole",
    "options",
]
