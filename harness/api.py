"""All that the author of a plug-in imports; importing it costs no torch."""

from __future__ import annotations

from harness.bits import IDENTITY_WIDTH, BitSpec
from harness.errors import HarnessError, UnsupportedError
from harness.method import (
    SIMULATED,
    Deviation,
    LayerReport,
    Method,
    QuantContext,
    QuantReport,
    Reproduction,
    Unsupported,
)

__all__ = [
    "IDENTITY_WIDTH",
    "SIMULATED",
    "BitSpec",
    "Deviation",
    "HarnessError",
    "LayerReport",
    "Method",
    "QuantContext",
    "QuantReport",
    "Reproduction",
    "Unsupported",
    "UnsupportedError",
]
