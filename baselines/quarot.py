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

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from harness.api import (
    IDENTITY_WIDTH,
    SAME_BUDGET,
    SAME_TARGETS,
    Deviation,
    Method,
    Prefix,
    QuantContext,
    QuantReport,
    Reproduction,
    Rounding,
    SpacedOptions,
    Work,
    options,
)
from harness.quant import (
    ActivationSpec,
    Hadamard,
    QuantLinear,
    Walk,
    WeightSpec,
    activation_of,
    gptq_linear,
    hadamard_shape,
    linear_at,
    quantize_linear,
    search_clip,
    transformed_weight,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import torch
    from torch import Tensor, nn

    from harness.api import BitSpec
    from harness.quant import InputGroup

WIDE = 7
"""Activation width from which the note on cut ranges is given."""


@options
class QuaRotOptions(SpacedOptions):
    """Knobs of QuaRot.

    Attributes:
        clip: Factor on the range of a token.
        rounding: ``gptq`` or ``rtn``.
        inputs: Block inputs of the Hessians: ``quantized`` as the quantized blocks before deliver
            them, or ``fp`` from the full-precision model.
    """

    clip: Annotated[float, Field(ge=0.05, le=1)] = 0.9  # QuaRot, activations
    rounding: Rounding = "gptq"  # QuaRot, the main tables; RTN is its ablation
    inputs: Prefix = "quantized"


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
        what="Hessians come from unrounded inputs in a block none of whose linears is rounded yet; "
        "the released code rounds the linears of a block one after the other",
        why="one pass of the samples through a block",
    ),
    Deviation(
        kind="adaptation",
        what="samples of a video in place of 128 segments of 2048 tokens of text",
        why="the paper treats language models",
    ),
    SAME_BUDGET,
    SAME_TARGETS,
)


class QuaRot(Method):
    """Online Hadamard rotation, clipped activations, clip search and GPTQ."""

    name = "quarot"
    Options = QuaRotOptions
    needs_calibration = True
    quick_s = 35.0
    reproduction = Reproduction(
        title="QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs",
        source="arXiv 2404.00456 (NeurIPS 2024)",
        code="https://github.com/spcl/QuaRot",
        deviations=_DEVIATIONS,
    )

    def work(self, options: QuaRotOptions, bits: BitSpec) -> Work:
        """Outputs, those of the quantized blocks where asked for, and GPTQ's Hessians."""
        hessians = options.rounding == "gptq" and bits.w < IDENTITY_WIDTH
        return Work(samples=options.samples, passes=1 + (options.inputs == "quantized") + hessians)

    def quantize_(self, transformer: nn.Module, ctx: QuantContext) -> QuantReport:
        """Rotate and round block by block."""
        options: QuaRotOptions = ctx.options
        generator = ctx.generator(salt=1)
        clipped = ActivationSpec(bits=ctx.bits.a, clip_low=options.clip, clip_high=options.clip)
        with_hessians = options.rounding == "gptq" and ctx.bits.w < IDENTITY_WIDTH
        rotated: set[int] = set()
        state = {"generator": generator, "rotated": rotated}
        walk = Walk(transformer, ctx, verb="rotating", state=state)
        for walked in walk:
            turns = rotations(walked.block, walked.groups, generator)
            rotated |= {turn.signs.numel() for steps in turns.values() for turn in steps}
            hessians = walked.hessians(turns) if with_hessians else {}
            for name, linear, group in walked.linears():
                activation, hessian = activation_of(group, clipped), hessians.get(name)
                layer = round_rotated(linear, ctx.bits.w, activation, turns[group.name], hessian)
                walked.replace_(name, layer, hessian=hessian)
        notes = (*_partial(rotated), *_cut(ctx.bits.a, options.clip))
        return walk.report(passes=int(with_hessians), notes=notes)


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
