"""The full-precision reference: the model as it is normally run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.api import Method, QuantContext, QuantReport, Reproduction

if TYPE_CHECKING:
    from torch import nn


class FP(Method):
    """Leave the transformer alone; every paired metric is measured against this row."""

    name = "fp"
    unquantized = True
    reproduction = Reproduction(
        title="Full precision", source="the model's own release", code="diffusers"
    )

    def quantize_(self, transformer: nn.Module, ctx: QuantContext) -> QuantReport:
        """Do nothing."""
        return QuantReport(execution="", layers=())
