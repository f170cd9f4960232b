"""All that the author of a plug-in imports; importing it costs no torch."""

from __future__ import annotations

from harness.bits import IDENTITY_WIDTH, BitSpec
from harness.errors import HarnessError, InfraError, UnsupportedError
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
    Work,
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
from harness.score.scorer import Clip, Scorer
from harness.spec import Metric

__all__ = [
    "IDENTITY_WIDTH",
    "SAME_BUDGET",
    "SAME_TARGETS",
    "SIMULATED",
    "Amount",
    "BitSpec",
    "Branches",
    "Clip",
    "Count",
    "Deviation",
    "HarnessError",
    "InfraError",
    "LayerReport",
    "Method",
    "Metric",
    "Modulation",
    "NoOptions",
    "Prefix",
    "QuantContext",
    "QuantReport",
    "Reproduction",
    "Rounding",
    "SampleOptions",
    "Scorer",
    "Share",
    "SpacedOptions",
    "TargetOptions",
    "Unsupported",
    "UnsupportedError",
    "Whole",
    "Work",
    "options",
]
