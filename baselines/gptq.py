"""Plain GPTQ: min-max grids, rounding column by column, inputs of the blocks quantized so far.

GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, arXiv 2210.17323.
Unlike ``rtn-gptq`` it searches no clipping range and sees the inputs that the quantized blocks
before deliver, as the paper does; order of the columns and groups are options.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from harness.api import (
    SAME_BUDGET,
    SAME_TARGETS,
    Deviation,
    Method,
    Prefix,
    QuantContext,
    QuantReport,
    Reproduction,
    SpacedOptions,
    Whole,
    Work,
    options,
)
from harness.quant import (
    PERCDAMP,
    ActivationSpec,
    Walk,
    WeightSpec,
    activation_of,
    fitting_group,
    gptq_linear,
    group_note,
)

if TYPE_CHECKING:
    from torch import nn

    from harness.api import BitSpec


@options
class GPTQOptions(SpacedOptions):
    """Knobs of GPTQ.

    Attributes:
        group: Weight group size along the input channels, 0 for per output channel.
        symmetric: Grid without zero point; False is the paper's asymmetric grid.
        act_order: Round the columns with the largest diagonal of the Hessian first; the grids of
            groups are then fixed before the rounding.
        percdamp: Dampening of the Hessian as a fraction of its mean diagonal.
        inputs: Block inputs of the Hessians: ``quantized`` as the quantized blocks before deliver
            them, or ``fp`` from the full-precision model.
    """

    group: Whole = 0  # GPTQ sec. 5, "Setup": per row
    symmetric: bool = True
    act_order: bool = False
    percdamp: Annotated[float, Field(ge=1e-6, le=1)] = PERCDAMP
    inputs: Prefix = "quantized"  # GPTQ sec. 5, "Setup"


class GPTQ(Method):
    """Min-max grids, GPTQ, dynamic per-token activations."""

    name = "gptq"
    Options = GPTQOptions
    needs_calibration = True
    quick_s = 20.0
    reproduction = Reproduction(
        title="GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
        source="arXiv 2210.17323 (ICLR 2023)",
        code="https://github.com/IST-DASLab/gptq",
        deviations=(
            Deviation(
                kind="adaptation",
                what="activations are rounded, symmetric, dynamic, per token; Hessians come from "
                "the linears' unrounded inputs",
                why="the paper quantizes the weights of language models only",
            ),
            Deviation(
                kind="deviation",
                what="weight grids are symmetric; `symmetric = false` gives the paper's asymmetric "
                "min-max grid",
                why="the same grid as rtn here, so that the difference to it is the rounding",
            ),
            Deviation(
                kind="adaptation",
                what="samples of a video in place of 128 segments of 2048 tokens of text",
                why="the paper treats language models",
            ),
            SAME_BUDGET,
            SAME_TARGETS,
        ),
    )

    def work(self, options: GPTQOptions, bits: BitSpec) -> Work:
        """Outputs, those of the quantized blocks where asked for, and Hessians."""
        del bits
        return Work(samples=options.samples, passes=2 + (options.inputs == "quantized"))

    def quantize_(self, transformer: nn.Module, ctx: QuantContext) -> QuantReport:
        """Round block by block."""
        options: GPTQOptions = ctx.options
        activation = ActivationSpec(bits=ctx.bits.a)
        walk = Walk(transformer, ctx, verb="rounding")
        for walked in walk:
            hessians = walked.hessians()
            for name, linear, group in walked.linears():
                weight = WeightSpec(
                    bits=ctx.bits.w, symmetric=options.symmetric,
                    group=fitting_group(linear.in_features, options.group),
                )  # fmt: skip
                rounded = gptq_linear(
                    linear, weight, activation_of(group, activation), hessians[name],
                    percdamp=options.percdamp, act_order=options.act_order,
                )  # fmt: skip
                walked.replace_(name, rounded, hessian=hessians[name])
        return walk.report(passes=1, notes=group_note(options.group, walk.widths))
