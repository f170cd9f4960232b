"""AWQ: weights only; the channels that see large activations are scaled up before the rounding.

AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration, arXiv 2306.00978,
MLSys 2024. For each tensor that linears read:
1. s = mean|X|^alpha, divided by sqrt(max s * min s); alpha from 0, 0.05, ... 0.95 by the output
   error of the readers.
2. X / s is folded into the layer that produces X where there is one, online elsewhere.
3. Weights: asymmetric, groups of 128 input channels; the range of each group is searched by its
   output error, except for queries and keys; rounding to nearest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from harness.api import (
    IDENTITY_WIDTH,
    SAME_BUDGET,
    SAME_TARGETS,
    BitSpec,
    Deviation,
    Method,
    QuantContext,
    QuantReport,
    Reproduction,
    SpacedOptions,
    Unsupported,
    Whole,
    Work,
    options,
)
from harness.quant import (
    ActivationSpec,
    QuantLinear,
    Walk,
    WeightSpec,
    apply_scales_,
    expand,
    fake_quantize,
    fitting_group,
    group_note,
    linear_at,
    quantize_linear,
    search_output_clip,
    stored_grid,
    summarise_inputs,
    transformed_weight,
    weight_grid,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from harness.quant import InputGroup, InputSummary, WalkedBlock

ALPHAS = tuple(n / 20 for n in range(20))  # AWQ's released code, auto_scale: a grid of 20
SHRINKS = tuple(1 - n / 20 for n in range(10))  # AWQ's released code, auto_clip: 1, 0.95, ... 0.55
LOWEST = 1e-4  # AWQ's released code: smallest mean|X|^alpha
UNCLIPPED = ("query", "key")
"""Projections that the released code does not clip, since their product, not either of them,
decides the attention."""


@options
class AWQOptions(SpacedOptions):
    """Knobs of AWQ.

    Attributes:
        group: Input channels that share a weight step, 0 for the whole row.
        scale: Search the channel scales; False leaves the inputs alone.
        clip: Search the range of each group.
        online: Scale the inputs that no producer can take over as well, by a division at run time;
            False leaves them alone.
    """

    group: Whole = 128  # AWQ's default
    scale: bool = True
    clip: bool = True
    online: bool = True


_DEVIATIONS = (
    Deviation(
        kind="deviation",
        what="the error of a scale is the summed output error of the linears that read the input, "
        "where the released code takes the output of the whole attention for queries, keys and "
        "values",
        why="the same objective on every family; it follows from the second moment of the inputs, "
        "so every calibration token counts and none is stored",
    ),
    Deviation(
        kind="deviation",
        what="the range of a group is searched over all calibration tokens by their second moment, "
        "where the released code draws 512 tokens",
        why="exact at no more cost",
    ),
    Deviation(
        kind="adaptation",
        what="scales are folded into modulation and value projections and stay online where no "
        "producer can take them, the second feed-forward linear above all; `online = false` "
        "leaves such inputs alone",
        why="the paper folds into the norms and linears of language models",
    ),
    Deviation(
        kind="adaptation",
        what="modulation linears are clipped, not scaled",
        why="nothing stands before them that could take a scale",
    ),
    SAME_BUDGET,
    SAME_TARGETS,
)


class AWQ(Method):
    """Activation-aware scales and clipping, weights only."""

    name = "awq"
    Options = AWQOptions
    needs_calibration = True
    quick_s = 25.0
    reproduction = Reproduction(
        title="AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration",
        source="arXiv 2306.00978 (MLSys 2024)",
        code="https://github.com/mit-han-lab/llm-awq",
        deviations=_DEVIATIONS,
    )

    def supports(self, family: str, bits: BitSpec) -> Unsupported | None:
        """Weights only: activations of fewer than 16 bits are refused."""
        if bits.a < IDENTITY_WIDTH:
            return Unsupported(
                reason=f"AWQ quantizes weights only; its rows have 16-bit activations: w{bits.w}a16"
            )
        return None

    def work(self, options: AWQOptions, bits: BitSpec) -> Work:
        """Outputs and second moments; the search runs on those."""
        del bits
        return Work(samples=options.samples, passes=2, searches=True)

    def quantize_(self, transformer: nn.Module, ctx: QuantContext) -> QuantReport:
        """Scale, clip and round block by block."""
        options: AWQOptions = ctx.options
        curves: dict[str, list[float]] = {}
        walk = Walk(transformer, ctx, verb="scaling", state={"curves": curves})
        for walked in walk:
            found = summarise_inputs(
                walked.block, ctx.family, walked.groups, walked.inputs,
                tokens=0, second_moment=True, generator=ctx.generator(),
            )  # fmt: skip
            hessians = second_moments(walked.groups, found)
            scales = search_scales(walked, found, hessians, ctx, curves)
            round_block_(walked, hessians, scales, ctx)
        notes = group_note(options.group, walk.widths)
        return walk.report(passes=1, notes=notes, curves=curves)


def second_moments(
    groups: Sequence[InputGroup], found: dict[str, InputSummary]
) -> dict[str, Tensor]:
    """Hessians by linear; linears that read the same tensor share one."""
    seen = {name: found[name].second_moment() for group in groups for name in group.observed}
    return {
        name: seen[name if group.split else group.linears[0]]
        for group in groups
        for name in group.linears
    }


def search_scales(
    walked: WalkedBlock,
    found: dict[str, InputSummary],
    hessians: dict[str, Tensor],
    ctx: QuantContext,
    curves: dict[str, list[float]],
) -> dict[str, Tensor]:
    """Scales of the inputs of a block by group; the chosen exponents go into ``curves``."""
    options: AWQOptions = ctx.options
    scales: dict[str, Tensor] = {}
    for group in walked.groups:
        if not options.scale or group.modulation or not (options.online or group.fold is not None):
            continue
        linears = {name: linear_at(walked.block, name) for name in group.linears}
        readers = [(hessians[n], linear.weight.detach().float()) for n, linear in linears.items()]
        seen = [found[name] for name in group.observed]
        mean = torch.stack([s.total for s in seen]).sum(0) / sum(s.count for s in seen)
        alpha = best_alpha(mean, readers, _spec(mean.numel(), ctx))
        curves.setdefault(f"alpha_{group.name}", []).append(alpha)
        scales[group.name] = awq_scale(mean, alpha)
    return scales


def round_block_(
    walked: WalkedBlock, hessians: dict[str, Tensor], scales: dict[str, Tensor], ctx: QuantContext
) -> None:
    """Apply the scales of a block and round its linears, in place."""
    options: AWQOptions = ctx.options
    online = apply_scales_(walked.block, walked.groups, scales)
    for name, linear, group in walked.linears():
        hessian = hessians[name]
        if group.name in scales:
            inverse = 1 / scales[group.name].double()
            hessian = hessian * inverse[:, None] * inverse
        clipped = options.clip and group.purpose(name) not in UNCLIPPED
        spec = _spec(linear.in_features, ctx)
        rounded = round_clipped(linear, spec, hessian if clipped else None, online[group.name])
        walked.replace_(name, rounded, hessian=hessian)


def _spec(width: int, ctx: QuantContext) -> WeightSpec:
    group = fitting_group(width, ctx.options.group)
    return WeightSpec(bits=ctx.bits.w, symmetric=False, group=group)


def awq_scale(mean: Tensor, alpha: float) -> Tensor:
    """AWQ's factor, s = mean|X|^alpha over sqrt(max s * min s): its extremes are reciprocal.

    Args:
        mean: mean|X_j| over the calibration tokens, ``[in_features]``.
        alpha: Exponent.
    """
    scale = (mean.double() ** alpha).clamp_min(LOWEST)
    return (scale / (scale.max() * scale.min()).sqrt()).float()


def best_alpha(mean: Tensor, readers: Sequence[tuple[Tensor, Tensor]], spec: WeightSpec) -> float:
    """The exponent with the smallest output error, the first of equals; 0.5 at width 16.

    Args:
        mean: mean|X_j|, ``[in_features]``.
        readers: As in ``scaled_error``.
        spec: How the weights are rounded.
    """
    if spec.bits == IDENTITY_WIDTH:
        return 0.5
    errors = [scaled_error(readers, awq_scale(mean, alpha), spec) for alpha in ALPHAS]
    return ALPHAS[min(range(len(ALPHAS)), key=errors.__getitem__)]


def scaled_error(
    readers: Sequence[tuple[Tensor, Tensor]], scale: Tensor, spec: WeightSpec
) -> float:
    """Sum over readers of ||(X / s) Q(W s)^T - X W^T||^2, up to the factor of the Hessians.

    Args:
        readers: Second moment of X ``[in_features, in_features]`` and weight ``[out_features,
            in_features]`` of every linear that reads the input.
        scale: ``[in_features]``.
        spec: How the weights are rounded, on min-max grids.
    """
    total = 0.0
    for hessian, weight in readers:
        scaled = weight * scale
        grid = stored_grid(
            weight_grid(scaled, spec.bits, symmetric=spec.symmetric, group=spec.group)
        )
        rounded = fake_quantize(scaled, expand(grid, spec.group), spec.bits)
        wrong = (rounded / scale - weight).double()
        total += float((wrong @ hessian).mul_(wrong).sum())
    return total


def round_clipped(
    linear: nn.Linear, spec: WeightSpec, hessian: Tensor | None, transforms: Sequence[nn.Module]
) -> QuantLinear:
    """Round a linear to nearest, on searched ranges where a Hessian is given.

    Args:
        linear: The layer to replace.
        spec: How the weight is rounded.
        hessian: Second moment of the transformed inputs; None takes min-max ranges.
        transforms: Input transforms.
    """
    keep = ActivationSpec(bits=IDENTITY_WIDTH)
    if hessian is None or spec.bits == IDENTITY_WIDTH:
        return quantize_linear(linear, spec, keep, transforms=transforms)
    weight = transformed_weight(linear.weight.detach().float(), transforms)
    grid = search_output_clip(
        weight, hessian, spec.bits, SHRINKS, symmetric=spec.symmetric, group=spec.group
    )
    return quantize_linear(linear, spec, keep, transforms=transforms, grid=grid)
