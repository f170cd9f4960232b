"""Clip search and GPTQ without any transform: what S2Q-VDiT's rounding gives by itself.

Grids and activations as in ``rtn``; the weight range is searched for each row (QuaRot's linear
search), the rounding is GPTQ (arXiv 2210.17323) on the same calibration samples that S2Q-VDiT's
default would see.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.api import (
    IDENTITY_WIDTH,
    Deviation,
    Method,
    QuantContext,
    QuantReport,
    Reproduction,
    SampleOptions,
    Work,
    options,
)
from harness.quant import (
    ActivationSpec,
    QuantLinear,
    Selection,
    Walk,
    WeightSpec,
    activation_of,
    choose_samples,
    gptq_linear,
    pool_salience,
    search_clip,
    shortage,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.api import BitSpec


@options
class RTNGPTQOptions(SampleOptions):
    """Knobs.

    Attributes:
        selection: Rule that chooses the calibration samples, as in ``s2q``.
    """

    selection: Selection = "sds"


class RTNGPTQ(Method):
    """Clip search, GPTQ, dynamic per-token activations."""

    name = "rtn-gptq"
    version = 2
    Options = RTNGPTQOptions
    needs_calibration = True
    quick_s = 20.0
    reproduction = Reproduction(
        title="GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
        source="arXiv 2210.17323 (ICLR 2023)",
        code="https://github.com/IST-DASLab/gptq",
        deviations=(
            Deviation(
                kind="adaptation",
                what="Hessians come from the inputs of full-precision blocks, activations "
                "unrounded, text and video tokens alike, at the samples S2Q-VDiT keeps (one "
                "guidance branch each, alternating)",
                why="the paper treats language models, block after block on quantized inputs",
            ),
            Deviation(
                kind="adaptation",
                what="the range of each weight row is searched before (QuaRot's linear search, "
                "squared error); no activation order",
                why="the same grid and order as S2Q-VDiT here, so that only its own parts differ",
            ),
        ),
    )

    def work(self, options: RTNGPTQOptions, bits: BitSpec) -> Work:
        """Outputs and Hessians."""
        del bits
        return Work(samples=options.samples, passes=2)

    def quantize_(self, transformer: nn.Module, ctx: QuantContext) -> QuantReport:
        """Round block by block."""
        pool, options = ctx.calibration, ctx.options
        salience = pool_salience(pool, ctx.family, transformer)
        chosen = choose_samples(
            options.selection, options.samples, pool, salience, ctx.generator(salt=1)
        )
        activation = ActivationSpec(bits=ctx.bits.a)
        walk = Walk(transformer, ctx, chosen, verb="rounding")
        for walked in walk:
            hessians = walked.hessians()
            for name, linear, group in walked.linears():
                hessian = hessians[name]
                rounded = _round(linear, ctx.bits.w, activation_of(group, activation), hessian)
                walked.replace_(name, rounded, hessian=hessian)
        return walk.report(passes=1, notes=shortage(chosen, options.samples))


def _round(
    linear: nn.Linear, bits: int, activation: ActivationSpec, hessian: Tensor
) -> QuantLinear:
    """Search the clip of every row, then round by GPTQ."""
    clip: Tensor | float = 1.0
    if bits < IDENTITY_WIDTH:
        clip = search_clip(linear.weight.detach().float(), bits)
    return gptq_linear(linear, WeightSpec(bits=bits), activation, hessian, clip=clip)
