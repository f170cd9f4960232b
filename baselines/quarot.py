"""QuaRot's quantization of a linear: random-sign Hadamard rotation of its input, then 4-bit grids.

QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs, arXiv 2404.00456, NeurIPS 2024. For each
tensor that linears read:
1. Rotate it online by random signs and a Hadamard matrix, and the weights that read it likewise.
2. Activations: symmetric, dynamic, per token, their range cut to 0.9.
3. Weights: symmetric per output channel, the range of each row by linear search, rounded by GPTQ or
   to nearest.
The rotation of the residual stream, which the paper absorbs into the weights, has no counterpart
here.
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
from harness.quant.layers.hadamard import hadamard_shape
from harness.quant.layers.layers import replace_module_
from harness.quant.layers.linear import QuantLinear, WeightSpec, quantize_linear, transformed_weight
from harness.quant.layers.transform import Hadamard
from harness.quant.options import check_choice, check_range
from harness.quant.rounding.clip import search_clip
from harness.quant.rounding.gptq import linear_hessians, output_error
from harness.quant.rounding.gptq_linear import gptq_linear

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import torch
    from torch import Tensor, nn

    from harness.models.families.base import InputGroup

WIDE = 7
"""Activation width from which the note on cut ranges is given."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QuaRotOptions:
    """Knobs of QuaRot.

    Attributes:
        clip: Factor on the range of a token.
        rounding: ``gptq`` or ``rtn``.
        inputs: Block inputs of the Hessians: ``quantized`` as the quantized blocks before deliver
            them, or ``fp`` from the full-precision model.
        samples: (prompt, timestep) samples; the paper takes 128 text segments.
        timesteps: Equally spaced timesteps of the samples.
        branches: Guidance branches of a sample: ``both``, ``alternate`` or ``cond``.
        modulation: ``w`` quantizes the weights of modulation linears too, ``fp`` leaves them out.
    """

    clip: float = 0.9  # QuaRot, activations
    rounding: str = "gptq"  # QuaRot, the main tables; RTN is its ablation
    inputs: str = "quantized"
    samples: int = 40
    timesteps: int = 10
    branches: str = "alternate"
    modulation: str = "w"

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            UsageError: A value is unknown or out of range.
        """
        check_range("clip", self.clip, 0.05, 1)
        check_choice("rounding", self.rounding, ("gptq", "rtn"))
        check_choice("inputs", self.inputs, ("quantized", "fp"))
        check_range("samples", self.samples, 1)
        check_range("timesteps", self.timesteps, 1)
        check_choice("branches", self.branches, BRANCHES)
        check_choice("modulation", self.modulation, MODULATION)


_DEVIATIONS = (
    Deviation(
        kind="adaptation",
        what="every tensor that linears read is rotated online, one rotation for all its readers; "
        "the paper rotates the residual stream offline and only some inputs online",
        why="between the LayerNorm of an adaLN transformer and its linears stand a mean "
        "subtraction and a scale and shift for each timestep, through which no rotation of the "
        "residual stream can be absorbed",
    ),
    Deviation(
        kind="adaptation",
        what="the head-wise rotation of the values is not folded, the whole input of the output "
        "projection is rotated online",
        why="the same function and the same outliers removed; only the cost at run time differs",
    ),
    Deviation(
        kind="adaptation",
        what="queries and keys are not rotated behind the positional embedding",
        why="a denoiser has no KV cache to quantize; attention products stay in high precision",
    ),
    Deviation(
        kind="adaptation",
        what="Hessians come from 40 (prompt, timestep) samples, one guidance branch each, text and "
        "video tokens alike, and from unrounded inputs in a block none of whose linears is rounded "
        "yet; the released code rounds the linears of a block one after the other",
        why="the same calibration budget as every method; the paper takes 128 segments of 2048 "
        "tokens",
    ),
    Deviation(
        kind="adaptation",
        what="modulation linears keep 16-bit activations and are not rotated; linears outside the "
        "blocks stay in high precision",
        why="the same target set for every method",
    ),
)


class QuaRot:
    """Online Hadamard rotation, clipped activations, clip search and GPTQ."""

    name = "quarot"
    version = 1
    Options = QuaRotOptions
    needs_calibration = True
    unquantized = False
    reproduction = Reproduction(
        title="QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs",
        source="arXiv 2404.00456 (NeurIPS 2024)",
        code="https://github.com/spcl/QuaRot",
        deviations=_DEVIATIONS,
    )

    def supports(self, family: str, bits: BitSpec) -> Unsupported | None:
        """Every family and width."""
        return None

    def quantize_(self, transformer: nn.Module, ctx: QuantContext) -> QuantReport:
        """Rotate and round block by block."""
        options: QuaRotOptions = ctx.options
        samples = uniform_samples(ctx.calibration, options.samples, options.timesteps)
        walk = Walk(
            transformer, ctx, samples,
            branches=options.branches, inputs=options.inputs, verb="rotating",
        )  # fmt: skip
        generator = ctx.generator(salt=1)
        clipped = ActivationSpec(bits=ctx.bits.a, clip_low=options.clip, clip_high=options.clip)
        errors: dict[str, float] = {}
        widths: set[int] = set()
        with_hessians = options.rounding == "gptq" and ctx.bits.w < IDENTITY_WIDTH
        for step in walk:
            groups = block_groups(ctx.family, step.block, options.modulation)
            turns = rotations(step.block, groups, generator)
            widths |= {t.signs.numel() for steps in turns.values() for t in steps}
            hessians: dict[str, Tensor] = {}
            if with_hessians:
                hessians = linear_hessians(step.block, ctx.family, groups, turns, step.given)
            for group in groups:
                for name in group.linears:
                    linear, turn = linear_at(step.block, name), turns[group.name]
                    hessian = hessians.get(name)
                    activation = activation_of(group, clipped)
                    rounded = round_rotated(linear, ctx.bits.w, activation, turn, hessian)
                    if hessian is not None:
                        rotated = transformed_weight(linear.weight.float(), turn)
                        error = output_error(rotated, rounded.dequantized(), hessian)
                        errors[f"{step.name}.{name}"] = error
                    replace_module_(step.block, name, rounded)
        notes = (
            *shortage(samples, options.samples),
            *_partial(widths),
            *_cut(ctx.bits.a, options.clip),
        )
        return walk.report(passes=int(with_hessians), errors=errors.items(), notes=notes)


def rotations(
    block: nn.Module, groups: Sequence[InputGroup], generator: torch.Generator
) -> dict[str, list[Hadamard]]:
    """Draw one random-sign Hadamard rotation for every token input, by group."""
    device = next(block.parameters()).device
    found: dict[str, list[Hadamard]] = {}
    for group in groups:
        width = linear_at(block, group.linears[0]).in_features
        turn = [] if group.modulation else [Hadamard.random(width, generator).to(device)]
        found[group.name] = turn
    return found


def round_rotated(
    linear: nn.Linear,
    bits: int,
    activation: ActivationSpec,
    turn: Sequence[nn.Module],
    hessian: Tensor | None,
) -> QuantLinear:
    """Search the range of every row of the rotated weight, then round it.

    Args:
        linear: The layer to replace.
        bits: Weight width.
        activation: How the rotated input is rounded.
        turn: The rotation, or nothing.
        hessian: Of the rotated inputs, for GPTQ; None rounds to nearest.
    """
    spec = WeightSpec(bits=bits)
    if bits == IDENTITY_WIDTH:
        return quantize_linear(linear, spec, activation, transforms=turn)
    clip = search_clip(transformed_weight(linear.weight.detach().float(), turn), bits)
    if hessian is None:
        return quantize_linear(linear, spec, activation, transforms=turn, clip=clip)
    return gptq_linear(linear, spec, activation, hessian, transforms=turn, clip=clip)


def _partial(widths: Iterable[int]) -> tuple[str, ...]:
    """Note for the report where a width has no full Hadamard matrix."""
    shapes = {width: hadamard_shape(width) for width in sorted(widths)}
    found = [f"{shape.label} at width {w}" for w, shape in shapes.items() if shape.blocks > 1]
    return (f"block-diagonal rotation: {', '.join(found)}",) if found else ()


def _cut(bits: int, clip: float) -> tuple[str, ...]:
    """Note for the report where cutting a token's range costs more than it saves in rounding."""
    if clip == 1 or not WIDE <= bits < IDENTITY_WIDTH:
        return ()
    return (
        f"token ranges are cut to {clip:g} at {bits} bits too, one ratio for every width; there "
        "the cut can outweigh the rounding, `clip = 1` leaves ranges whole",
    )
