"""SmoothQuant: channel scales that move the outliers of activations into the weights.

SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models, arXiv
2211.10438, ICML 2023. For each tensor that linears read:
1. s_j = max|X_j|^alpha / max|W_j|^(1 - alpha) over the calibration tokens and all its readers.
2. X / s is folded into the layer that produces X where there is one, computed online elsewhere;
   the weights take s.
3. Everything is rounded to nearest: weights symmetric per output channel, activations symmetric,
   dynamic, per token.
alpha is chosen from a grid for each input by the output error of its readers, or fixed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from harness.api import (
    IDENTITY_WIDTH,
    SAME_BUDGET,
    SAME_TARGETS,
    BitSpec,
    Count,
    Deviation,
    Method,
    QuantContext,
    QuantReport,
    Reproduction,
    Share,
    SpacedOptions,
    Work,
    options,
)
from harness.quant import (
    ActivationSpec,
    Walk,
    WeightSpec,
    activation_of,
    apply_scales_,
    fake_quantize,
    linear_at,
    quantize_activation,
    quantize_linear,
    smoothing_scale,
    stored_grid,
    summarise_inputs,
    weight_grid,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

ALPHAS = tuple(k / 20 for k in range(1, 20))
"""Candidates 0.05, 0.10, ... 0.95; the grid is ours, the paper tunes alpha for each model."""


@options
class SmoothQuantOptions(SpacedOptions):
    """Knobs of SmoothQuant.

    Attributes:
        search: Choose alpha for each input from a grid, by the output error of its readers.
        alpha: Migration strength where it is not searched.
        online: Scale the inputs that no producer can take over as well, by a division at run time;
            False leaves them alone.
        tokens: Tokens of each input on which alphas are compared.
    """

    search: bool = True
    alpha: Share = 0.5  # SmoothQuant's default
    online: bool = True
    tokens: Count = 2048


_DEVIATIONS = (
    Deviation(
        kind="deviation",
        what="alpha is chosen for each input from 0.05, 0.10, ... 0.95 by the squared output error "
        "of all its readers, weights and activations rounded, on up to 2048 calibration tokens; "
        "`search = false` fixes one alpha",
        why="the paper fixes one alpha a model; published alphas for video DiTs lie between 0.1 "
        "and 0.75, so one number would decide the row",
    ),
    Deviation(
        kind="adaptation",
        what="the scale is folded into modulation and value projections; the input of the second "
        "feed-forward linear, and what else no producer can take, is divided online; "
        "`online = false` leaves such inputs alone",
        why="the paper folds into the LayerNorms of language models",
    ),
    Deviation(
        kind="adaptation",
        what="max|X_j| is taken over all tokens of the calibration samples",
        why="the paper treats language models",
    ),
    SAME_BUDGET,
    SAME_TARGETS,
)


class SmoothQuant(Method):
    """Channel scales by migration strength, then rounding to nearest."""

    name = "smoothquant"
    Options = SmoothQuantOptions
    needs_calibration = True
    quick_s = 35.0
    reproduction = Reproduction(
        title="SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language "
        "Models",
        source="arXiv 2211.10438 (ICML 2023)",
        code="https://github.com/mit-han-lab/smoothquant",
        deviations=_DEVIATIONS,
    )

    def work(self, options: SmoothQuantOptions, bits: BitSpec) -> Work:
        """Outputs and statistics; the search runs on kept tokens."""
        del bits
        return Work(samples=options.samples, passes=2, searches=options.search)

    def quantize_(self, transformer: nn.Module, ctx: QuantContext) -> QuantReport:
        """Smooth and round block by block."""
        options: SmoothQuantOptions = ctx.options
        generator = ctx.generator(salt=1)
        searched = options.search and not ctx.bits.is_identity
        weight, activation = WeightSpec(bits=ctx.bits.w), ActivationSpec(bits=ctx.bits.a)
        curves: dict[str, list[float]] = {}
        state = {"generator": generator, "curves": curves}
        walk = Walk(transformer, ctx, verb="smoothing", state=state)
        for walked in walk:
            smoothed = [
                group
                for group in walked.groups
                if not group.modulation and (options.online or group.fold is not None)
            ]
            found = summarise_inputs(
                walked.block, ctx.family, smoothed, walked.inputs,
                tokens=options.tokens * searched, second_moment=False, generator=generator,
            )  # fmt: skip
            scales: dict[str, Tensor] = {}
            for group in smoothed:
                linears = [linear_at(walked.block, name) for name in group.linears]
                weights = [linear.weight.detach().float() for linear in linears]
                peak = torch.stack([found[name].peak for name in group.linears]).amax(0)
                alpha = options.alpha
                if searched:
                    tokens = [found[name].tokens() for name in group.observed]
                    alpha = best_alpha(peak, tokens, weights, ctx.bits)
                curves.setdefault(f"alpha_{group.name}", []).append(alpha)
                scales[group.name] = group_scale(peak, weights, alpha)
            online = apply_scales_(walked.block, walked.groups, scales)
            for name, linear, group in walked.linears():
                rounded = quantize_linear(
                    linear, weight, activation_of(group, activation), transforms=online[group.name]
                )
                walked.replace_(name, rounded)
        return walk.report(passes=1, curves=curves)


def group_scale(peak: Tensor, weights: Sequence[Tensor], alpha: float) -> Tensor:
    """Factor of a shared input; max|W_j| runs over all weights that read it, ``[in_features]``."""
    return smoothing_scale(peak, torch.stack([w.abs().amax(0) for w in weights]).amax(0), alpha)


def best_alpha(
    peak: Tensor, tokens: Sequence[Tensor], weights: Sequence[Tensor], bits: BitSpec
) -> float:
    """The alpha with the smallest output error over the kept tokens, the first of equals.

    Args:
        peak: max|X_j|, ``[in_features]``.
        tokens: As in ``smoothed_error``.
        weights: As in ``smoothed_error``.
        bits: Widths.
    """
    errors = [
        smoothed_error(tokens, weights, group_scale(peak, weights, alpha), bits) for alpha in ALPHAS
    ]
    return ALPHAS[min(range(len(ALPHAS)), key=errors.__getitem__)]


def smoothed_error(
    tokens: Sequence[Tensor], weights: Sequence[Tensor], scale: Tensor, bits: BitSpec
) -> float:
    """Sum over readers of ||Q(X / s) Q(W s)^T - X W^T||^2.

    Args:
        tokens: ``[tokens, in_features]``, one that all weights read or one for each weight.
        weights: ``[out_features, in_features]`` each.
        scale: ``[in_features]``.
        bits: Widths.
    """
    rounded = [quantize_activation(x / scale, ActivationSpec(bits=bits.a)) for x in tokens]
    total = 0.0
    for i, weight in enumerate(weights):
        place = min(i, len(tokens) - 1)
        scaled = weight * scale
        if bits.w < IDENTITY_WIDTH:
            scaled = fake_quantize(scaled, stored_grid(weight_grid(scaled, bits.w)), bits.w)
        total += float((rounded[place] @ scaled.T - tokens[place] @ weight.T).square().sum())
    return total
