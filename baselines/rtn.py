"""Round to nearest: min-max grids and nothing else.

Weights symmetric per output channel, activations symmetric, dynamic, per token: the granularity of
S2Q-VDiT (arXiv 2508.04016, eq. 1), so that the difference to it is what it learns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.api import BitSpec, QuantContext, QuantReport, Reproduction, Unsupported
from harness.quant.layers.activation import ActivationSpec
from harness.quant.layers.apply import MODULATION, activation_of, quantize_linears_
from harness.quant.layers.linear import QuantLinear, WeightSpec, quantize_linear
from harness.quant.options import check_choice, check_range

if TYPE_CHECKING:
    from torch import nn

    from harness.models.families.base import InputGroup


@dataclass(frozen=True, kw_only=True, slots=True)
class RTNOptions:
    """Knobs.

    Attributes:
        group: Weight group size along the input channels, 0 for per output channel.
        modulation: ``w`` quantizes the weights of modulation linears too, ``fp`` leaves them out.
    """

    group: int = 0
    modulation: str = "w"

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            UsageError: A value is unknown or out of range.
        """
        check_range("group", self.group, 0)
        check_choice("modulation", self.modulation, MODULATION)


class RTN:
    """Round every target linear to nearest."""

    name = "rtn"
    version = 1
    Options = RTNOptions
    needs_calibration = False
    unquantized = False
    reproduction = Reproduction(
        title="Round to nearest with min-max ranges", source="common practice", code="none needed"
    )

    def supports(self, family: str, bits: BitSpec) -> Unsupported | None:
        """Every family and width."""
        return None

    def quantize_(self, transformer: nn.Module, ctx: QuantContext) -> QuantReport:
        """Round."""
        weight = WeightSpec(bits=ctx.bits.w, group=ctx.options.group)
        activation = ActivationSpec(bits=ctx.bits.a)

        def round_linear(linear: nn.Linear, group: InputGroup) -> QuantLinear:
            return quantize_linear(linear, weight, activation_of(group, activation))

        return quantize_linears_(transformer, ctx, round_linear, ctx.options.modulation)
