"""Plain GPTQ: min-max grids, rounding column by column, inputs of the blocks quantized so far.

GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, arXiv 2210.17323.
Unlike ``rtn-gptq`` it searches no clipping range and sees the inputs that the quantized blocks
before deliver, as the paper does; order of the columns and groups are options.
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
from harness.quant.calibration.salience import shortage
from harness.quant.calibration.samples import uniform_samples
from harness.quant.calibration.walk import Walk, block_groups
from harness.quant.layers.activation import ActivationSpec
from harness.quant.layers.apply import MODULATION, activation_of
from harness.quant.layers.layers import replace_module_
from harness.quant.layers.linear import WeightSpec, fitting_group
from harness.quant.options import check_choice, check_range
from harness.quant.rounding.gptq import PERCDAMP, linear_hessians, output_error
from harness.quant.rounding.gptq_linear import gptq_linear
from harness.quant.rounding.groups import group_note

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True, slots=True)
class GPTQOptions:
    """Knobs of GPTQ.

    Attributes:
        group: Weight group size along the input channels, 0 for per output channel.
        symmetric: Grid without zero point; False is the paper's asymmetric grid.
        act_order: Round the columns with the largest diagonal of the Hessian first; the grids of
            groups are then fixed before the rounding.
        percdamp: Dampening of the Hessian as a fraction of its mean diagonal.
        inputs: Block inputs of the Hessians: ``quantized`` as the quantized blocks before deliver
            them, or ``fp`` from the full-precision model.
        samples: (prompt, timestep) samples; the paper takes 128 text segments.
        timesteps: Equally spaced timesteps of the samples.
        branches: Guidance branches of a sample: ``both``, ``alternate`` or ``cond``.
        modulation: ``w`` quantizes the weights of modulation linears too, ``fp`` leaves them out.
    """

    group: int = 0  # GPTQ sec. 5, "Setup": per row
    symmetric: bool = True
    act_order: bool = False
    percdamp: float = PERCDAMP
    inputs: str = "quantized"  # GPTQ sec. 5, "Setup"
    samples: int = 40
    timesteps: int = 10
    branches: str = "alternate"
    modulation: str = "w"

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            UsageError: A value is unknown or out of range.
        """
        check_range("group", self.group, 0)
        check_range("percdamp", self.percdamp, 1e-6, 1)
        check_choice("inputs", self.inputs, ("quantized", "fp"))
        check_range("samples", self.samples, 1)
        check_range("timesteps", self.timesteps, 1)
        check_choice("branches", self.branches, BRANCHES)
        check_choice("modulation", self.modulation, MODULATION)


class GPTQ:
    """Min-max grids, GPTQ, dynamic per-token activations."""

    name = "gptq"
    version = 1
    Options = GPTQOptions
    needs_calibration = True
    unquantized = False
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
                what="calibrated on 40 (prompt, timestep) samples: 10 equally spaced timesteps x 4 "
                "prompts, one guidance branch each, text and video tokens alike",
                why="the same calibration budget as every method; the paper takes 128 segments of "
                "2048 tokens",
            ),
            Deviation(
                kind="adaptation",
                what="modulation linears keep 16-bit activations; linears outside the blocks stay "
                "in high precision",
                why="the same target set for every method",
            ),
        ),
    )

    def supports(self, family: str, bits: BitSpec) -> Unsupported | None:
        """Every family and width."""
        return None

    def quantize_(self, transformer: nn.Module, ctx: QuantContext) -> QuantReport:
        """Round block by block."""
        options: GPTQOptions = ctx.options
        samples = uniform_samples(ctx.calibration, options.samples, options.timesteps)
        walk = Walk(
            transformer, ctx, samples,
            branches=options.branches, inputs=options.inputs, verb="rounding",
        )  # fmt: skip
        errors: dict[str, float] = {}
        widths: set[int] = set()
        for step in walk:
            groups = block_groups(ctx.family, step.block, options.modulation)
            hessians = linear_hessians(step.block, ctx.family, groups, {}, step.given)
            for group in groups:
                activation = activation_of(group, ActivationSpec(bits=ctx.bits.a))
                for name in group.linears:
                    linear = linear_at(step.block, name)
                    widths.add(linear.in_features)
                    spec = WeightSpec(
                        bits=ctx.bits.w, symmetric=options.symmetric,
                        group=fitting_group(linear.in_features, options.group),
                    )  # fmt: skip
                    rounded = gptq_linear(
                        linear, spec, activation, hessians[name],
                        percdamp=options.percdamp, act_order=options.act_order,
                    )  # fmt: skip
                    if ctx.bits.w < IDENTITY_WIDTH:
                        errors[f"{step.name}.{name}"] = output_error(
                            linear.weight, rounded.dequantized(), hessians[name]
                        )
                    replace_module_(step.block, name, rounded)
        notes = (*shortage(samples, options.samples), *group_note(options.group, widths))
        return walk.report(passes=1, errors=errors.items(), notes=notes)
