"""Clip search and GPTQ without any transform: what S2Q-VDiT's rounding gives by itself.

Grids and activations as in ``rtn``; the weight range is searched for each row (QuaRot's linear
search), the rounding is GPTQ (arXiv 2210.17323) on the same calibration samples that S2Q-VDiT's
default would see.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.api import (
    IDENTITY_WIDTH,
    BitSpec,
    Deviation,
    QuantContext,
    QuantReport,
    Reproduction,
    Unsupported,
)
from harness.models.families.base import linear_at
from harness.quant.calibration.capture import BRANCHES
from harness.quant.calibration.salience import RULES, choose_samples, pool_salience, shortage
from harness.quant.calibration.walk import Walk, block_groups
from harness.quant.layers.activation import ActivationSpec
from harness.quant.layers.apply import MODULATION, activation_of
from harness.quant.layers.layers import replace_module_
from harness.quant.layers.linear import QuantLinear, WeightSpec
from harness.quant.options import check_choice, check_range
from harness.quant.rounding.clip import search_clip
from harness.quant.rounding.gptq import linear_hessians
from harness.quant.rounding.gptq_linear import gptq_linear

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True, slots=True)
class RTNGPTQOptions:
    """Knobs.

    Attributes:
        selection: Rule that chooses the calibration samples, as in ``s2q``.
        samples: How many.
        branches: Guidance branches of a sample, as in ``s2q``.
        modulation: ``w`` quantizes the weights of modulation linears too, ``fp`` leaves them out.
    """

    selection: str = "sds"
    samples: int = 40
    branches: str = "alternate"
    modulation: str = "w"

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            UsageError: A value is unknown or out of range.
        """
        check_choice("selection", self.selection, RULES)
        check_range("samples", self.samples, 1)
        check_choice("branches", self.branches, BRANCHES)
        check_choice("modulation", self.modulation, MODULATION)


class RTNGPTQ:
    """Clip search, GPTQ, dynamic per-token activations."""

    name = "rtn-gptq"
    version = 2
    Options = RTNGPTQOptions
    needs_calibration = True
    unquantized = False
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

    def supports(self, family: str, bits: BitSpec) -> Unsupported | None:
        """Every family and width."""
        return None

    def quantize_(self, transformer: nn.Module, ctx: QuantContext) -> QuantReport:
        """Round block by block."""
        pool, options = ctx.calibration, ctx.options
        salience = pool_salience(pool, ctx.family, transformer)
        chosen = choose_samples(
            options.selection, options.samples, pool, salience, ctx.generator(salt=1)
        )
        walk = Walk(transformer, ctx, chosen, branches=options.branches, verb="rounding")
        for step in walk:
            groups = block_groups(ctx.family, step.block, options.modulation)
            hessians = linear_hessians(step.block, ctx.family, groups, {}, step.inputs)
            for group in groups:
                activation = activation_of(group, ActivationSpec(bits=ctx.bits.a))
                for linear in group.linears:
                    rounded = _round(
                        linear_at(step.block, linear), ctx.bits.w, activation, hessians[linear]
                    )
                    replace_module_(step.block, linear, rounded)
        return walk.report(passes=1, notes=shortage(chosen, options.samples))


def _round(
    linear: nn.Linear, bits: int, activation: ActivationSpec, hessian: Tensor
) -> QuantLinear:
    """Search the clip of every row, then round by GPTQ."""
    clip: Tensor | float = 1.0
    if bits < IDENTITY_WIDTH:
        clip = search_clip(linear.weight.detach().float(), bits)
    return gptq_linear(linear, WeightSpec(bits=bits), activation, hessian, clip=clip)
