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
from harness.quant.layers.activation import ActivationSpec, quantize_activation
from harness.quant.layers.apply import MODULATION, activation_of
from harness.quant.layers.grid import fake_quantize, weight_grid
from harness.quant.layers.layers import replace_module_
from harness.quant.layers.linear import WeightSpec, quantize_linear, stored_grid
from harness.quant.options import check_choice, check_range
from harness.quant.rounding.smoothing import apply_scale_, smoothing_scale, summarise_inputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from harness.models.families.base import InputGroup

ALPHAS = tuple(k / 20 for k in range(1, 20))
"""Candidates 0.05, 0.10, ... 0.95; the grid is ours, the paper tunes alpha for each model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SmoothQuantOptions:
    """Knobs of SmoothQuant.

    Attributes:
        search: Choose alpha for each input from a grid, by the output error of its readers.
        alpha: Migration strength where it is not searched.
        online: Scale the inputs that no producer can take over as well, by a division at run time;
            False leaves them alone.
        tokens: Tokens of each input on which alphas are compared.
        samples: (prompt, timestep) samples.
        timesteps: Equally spaced timesteps of the samples.
        branches: Guidance branches of a sample: ``both``, ``alternate`` or ``cond``.
        modulation: ``w`` quantizes the weights of modulation linears too, ``fp`` leaves them out.
    """

    search: bool = True
    alpha: float = 0.5  # SmoothQuant's default
    online: bool = True
    tokens: int = 2048
    samples: int = 40
    timesteps: int = 10
    branches: str = "alternate"
    modulation: str = "w"

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            UsageError: A value is unknown or out of range.
        """
        check_range("alpha", self.alpha, 0, 1)
        check_range("tokens", self.tokens, 1)
        check_range("samples", self.samples, 1)
        check_range("timesteps", self.timesteps, 1)
        check_choice("branches", self.branches, BRANCHES)
        check_choice("modulation", self.modulation, MODULATION)


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
        what="max|X_j| is taken over all tokens of 40 samples: 10 equally spaced timesteps x 4 "
        "prompts, one guidance branch each, text and video tokens alike",
        why="the same calibration budget as every method; the paper treats language models",
    ),
    Deviation(
        kind="adaptation",
        what="modulation linears keep 16-bit activations and are not smoothed; linears outside the "
        "blocks stay in high precision",
        why="the same target set for every method",
    ),
)


class SmoothQuant:
    """Channel scales by migration strength, then rounding to nearest."""

    name = "smoothquant"
    version = 1
    Options = SmoothQuantOptions
    needs_calibration = True
    unquantized = False
    reproduction = Reproduction(
        title="SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language "
        "Models",
        source="arXiv 2211.10438 (ICML 2023)",
        code="https://github.com/mit-han-lab/smoothquant",
        deviations=_DEVIATIONS,
    )

    def supports(self, family: str, bits: BitSpec) -> Unsupported | None:
        """Every family and width."""
        return None

    def quantize_(self, transformer: nn.Module, ctx: QuantContext) -> QuantReport:
        """Smooth and round block by block."""
        options: SmoothQuantOptions = ctx.options
        samples = uniform_samples(ctx.calibration, options.samples, options.timesteps)
        walk = Walk(transformer, ctx, samples, branches=options.branches, verb="smoothing")
        generator = ctx.generator(salt=1)
        searched = options.search and not ctx.bits.is_identity
        curves: dict[str, list[float]] = {}
        for step in walk:
            groups = block_groups(ctx.family, step.block, options.modulation)
            smoothed = [
                g for g in groups if not g.modulation and (options.online or g.fold is not None)
            ]
            found = summarise_inputs(
                step.block, ctx.family, smoothed, step.inputs,
                tokens=options.tokens * searched, second_moment=False, generator=generator,
            )  # fmt: skip
            scales: dict[str, Tensor] = {}
            for group in smoothed:
                weights = [linear_at(step.block, n).weight.detach().float() for n in group.linears]
                peak = torch.stack([found[n].peak for n in group.linears]).amax(0)
                alpha = options.alpha
                if searched:
                    tokens = [found[n].tokens() for n in group.observed]
                    alpha = best_alpha(peak, tokens, weights, ctx.bits)
                curves.setdefault(f"alpha_{group.name}", []).append(alpha)
                scales[group.name] = group_scale(peak, weights, alpha)
            # all folds before any rounding: a producer may itself be a linear to be rounded
            rest = {g.name: apply_scale_(step.block, g, scales[g.name]) for g in smoothed}
            for group in groups:
                _round_(step.block, group, ctx.bits, rest.get(group.name, []))
        notes = shortage(samples, options.samples)
        return walk.report(passes=1, notes=notes, curves=curves)


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


def _round_(
    block: nn.Module, group: InputGroup, bits: BitSpec, transforms: Sequence[nn.Module]
) -> None:
    """Round the linears of a group to nearest, in place."""
    activation = activation_of(group, ActivationSpec(bits=bits.a))
    for name in group.linears:
        linear = linear_at(block, name)
        rounded = quantize_linear(
            linear, WeightSpec(bits=bits.w), activation, transforms=transforms
        )
        replace_module_(block, name, rounded)
