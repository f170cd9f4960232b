"""Round to nearest: min-max grids and nothing else.

Weights symmetric per output channel, activations symmetric, dynamic, per token: the granularity of
S2Q-VDiT (arXiv 2508.04016, eq. 1), so that the difference to it is what it learns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.api import (
    Method,
    QuantContext,
    QuantReport,
    Reproduction,
    TargetOptions,
    Whole,
    Work,
    options,
)
from harness.quant import (
    ActivationSpec,
    QuantLinear,
    WeightSpec,
    activation_of,
    quantize_linear,
    quantize_linears_,
)

if TYPE_CHECKING:
    from torch import nn

    from harness.api import BitSpec
    from harness.quant import InputGroup


@options
class RTNOptions(TargetOptions):
    """Knobs.

    Attributes:
        group: Weight group size along the input channels, 0 for per output channel.
    """

    group: Whole = 0


class RTN(Method):
    """Round every target linear to nearest."""

    name = "rtn"
    Options = RTNOptions
    quick_s = 5.0
    reproduction = Reproduction(
        title="Round to nearest with min-max ranges", source="common practice", code="none needed"
    )

    def work(self, options: RTNOptions, bits: BitSpec) -> Work:
        """Weights alone are rounded: nothing is run."""
        del options, bits
        return Work()

    def quantize_(self, transformer: nn.Module, ctx: QuantContext) -> QuantReport:
        """Round."""
        weight = WeightSpec(bits=ctx.bits.w, group=ctx.options.group)
        activation = ActivationSpec(bits=ctx.bits.a)

        def round_linear(linear: nn.Linear, group: InputGroup) -> QuantLinear:
            return quantize_linear(linear, weight, activation_of(group, activation))

        return quantize_linears_(transformer, ctx, round_linear)
