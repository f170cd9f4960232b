"""The full-precision reference: the model as it is normally run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.api import BitSpec, QuantContext, QuantReport, Reproduction, Unsupported

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True, slots=True)
class NoOptions:
    """No knobs."""


class FP:
    """Leave the transformer alone; every paired metric is measured against this row."""

    name = "fp"
    version = 1
    Options = NoOptions
    needs_calibration = False
    unquantized = True
    reproduction = Reproduction(
        title="Full precision", source="the model's own release", code="diffusers"
    )

    def supports(self, family: str, bits: BitSpec) -> Unsupported | None:
        """Every family runs unquantized."""
        return None

    def quantize_(self, transformer: nn.Module, ctx: QuantContext) -> QuantReport:
        """Do nothing."""
        return QuantReport(execution="", layers=())
