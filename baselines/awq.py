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

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

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
from harness.quant.layers.apply import MODULATION
from harness.quant.layers.grid import expand, fake_quantize, weight_grid
from harness.quant.layers.layers import replace_module_
from harness.quant.layers.linear import (
    QuantLinear,
    WeightSpec,
    fitting_group,
    quantize_linear,
    stored_grid,
    transformed_weight,
)
from harness.quant.options import check_choice, check_range
from harness.quant.rounding.clip import search_output_clip
from harness.quant.rounding.gptq import output_error
from harness.quant.rounding.groups import group_note
from harness.quant.rounding.smoothing import apply_scale_, summarise_inputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from harness.models.families.base import InputGroup
    from harness.quant.calibration.walk import WalkedBlock
    from harness.quant.rounding.smoothing import InputSummary

ALPHAS = tuple(n / 20 for n in range(20))  # AWQ's released code, auto_scale: a grid of 20
SHRINKS = tuple(1 - n / 20 for n in range(10))  # AWQ's released code, auto_clip: 1, 0.95, ... 0.55
LOWEST = 1e-4  # AWQ's released code: smallest mean|X|^alpha
UNCLIPPED = ("query", "key")
"""Projections that the released code does not clip, since their product, not either of them,
decides the attention."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AWQOptions:
    """Knobs of AWQ.

    Attributes:
        group: Input channels that share a weight step, 0 for the whole row.
        scale: Search the channel scales; False leaves the inputs alone.
        clip: Search the range of each group.
        online: Scale the inputs that no producer can take over as well, by a division at run time;
            False leaves them alone.
        samples: (prompt, timestep) samples.
        timesteps: Equally spaced timesteps of the samples.
        branches: Guidance branches of a sample: ``both``, ``alternate`` or ``cond``.
        modulation: ``w`` quantizes the weights of modulation linears too, ``fp`` leaves them out.
    """

    group: int = 128  # AWQ's default
    scale: bool = True
    clip: bool = True
    online: bool = True
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
        check_range("samples", self.samples, 1)
        check_range("timesteps", self.timesteps, 1)
        check_choice("branches", self.branches, BRANCHES)
        check_choice("modulation", self.modulation, MODULATION)


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
        what="40 (prompt, timestep) samples: 10 equally spaced timesteps x 4 prompts, one guidance "
        "branch each, text and video tokens alike; modulation linears are clipped, not scaled",
        why="the same calibration budget and target set as every method; the paper treats language "
        "models",
    ),
)


class AWQ:
    """Activation-aware scales and clipping, weights only."""

    name = "awq"
    version = 1
    Options = AWQOptions
    needs_calibration = True
    unquantized = False
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

    def quantize_(self, transformer: nn.Module, ctx: QuantContext) -> QuantReport:
        """Scale, clip and round block by block."""
        options: AWQOptions = ctx.options
        samples = uniform_samples(ctx.calibration, options.samples, options.timesteps)
        walk = Walk(transformer, ctx, samples, branches=options.branches, verb="scaling")
        errors: dict[str, float] = {}
        curves: dict[str, list[float]] = {}
        widths: set[int] = set()
        for step in walk:
            groups = block_groups(ctx.family, step.block, options.modulation)
            found = summarise_inputs(
                step.block, ctx.family, groups, step.inputs,
                tokens=0, second_moment=True, generator=ctx.generator(),
            )  # fmt: skip
            errors |= _quantize_block_(step, groups, found, ctx, curves)
            widths |= {summary.peak.numel() for summary in found.values()}
        notes = (*shortage(samples, options.samples), *group_note(options.group, widths))
        return walk.report(passes=1, errors=errors.items(), notes=notes, curves=curves)


def _quantize_block_(
    step: WalkedBlock,
    groups: Sequence[InputGroup],
    found: dict[str, InputSummary],
    ctx: QuantContext,
    curves: dict[str, list[float]],
) -> dict[str, float]:
    """Scale and round the linears of a block, in place; return their output errors by name."""
    options: AWQOptions = ctx.options
    hessians = {name: found[name].second_moment() for g in groups for name in g.observed}
    hessians |= {n: hessians[g.linears[0]] for g in groups if not g.split for n in g.linears}
    scales: dict[str, Tensor] = {}
    for group in groups:
        if not options.scale or group.modulation or not (options.online or group.fold is not None):
            continue
        readers = [
            (hessians[n], linear_at(step.block, n).weight.detach().float()) for n in group.linears
        ]
        seen = [found[n] for n in group.observed]
        mean = torch.stack([s.total for s in seen]).sum(0) / sum(s.count for s in seen)
        alpha = best_alpha(mean, readers, _spec(mean.numel(), ctx))
        curves.setdefault(f"alpha_{group.name}", []).append(alpha)
        scales[group.name] = awq_scale(mean, alpha)
    # all folds before any rounding: a producer may itself be a linear to be rounded
    rest = {g.name: apply_scale_(step.block, g, scales[g.name]) for g in groups if g.name in scales}
    errors: dict[str, float] = {}
    for group in groups:
        transforms = rest.get(group.name, [])
        for name in group.linears:
            linear, hessian = linear_at(step.block, name), hessians[name]
            if group.name in scales:
                inverse = 1 / scales[group.name].double()
                hessian = hessian * inverse[:, None] * inverse
            clipped = options.clip and group.purpose(name) not in UNCLIPPED
            spec = _spec(linear.in_features, ctx)
            rounded = round_clipped(linear, spec, hessian if clipped else None, transforms)
            if ctx.bits.w < IDENTITY_WIDTH:
                weight = transformed_weight(linear.weight.detach().float(), transforms)
                error = output_error(weight, rounded.dequantized(), hessian)
                errors[f"{step.name}.{name}"] = error
            replace_module_(step.block, name, rounded)
    return errors


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
