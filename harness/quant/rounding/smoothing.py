"""Moving the size of channels from activations to weights: the scale, and where it goes.

SmoothQuant (arXiv 2211.10438) and AWQ (arXiv 2306.00978) divide every channel of an input by its
own factor and multiply it into the weights that read it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from harness.models.families.fold import fold_scale_
from harness.quant.layers.grid import storable
from harness.quant.layers.transform import ChannelScale

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.models.families.base import InputGroup

LOWEST, HIGHEST = 1e-5, 1e5
"""Bounds of a factor: beyond them a folded weight would leave the range of half precision."""


def smoothing_scale(
    activation: Tensor, weight: Tensor, alpha: float, beta: float | None = None
) -> Tensor:
    """SmoothQuant's factor, s_j = max|X_j|^alpha / max|W_j|^beta with beta = 1 - alpha.

    Args:
        activation: max|X_j|, ``[in_features]``.
        weight: max|W_j| over every linear that reads the input, ``[in_features]``.
        alpha: Migration strength, 0 to 1; the larger, the more goes into the weights.
        beta: Exponent of the weight where it is not 1 - alpha (SVDQuant, arXiv 2411.05007).

    Returns:
        ``[in_features]``; 1 where the channel or its weights are zero.
    """
    scale = activation.double() ** alpha / weight.double() ** (1 - alpha if beta is None else beta)
    used = (activation > 0) & (weight > 0)
    return torch.where(used, scale, 1.0).clamp(LOWEST, HIGHEST).float()


def apply_scale_(block: nn.Module, group: InputGroup, scale: Tensor) -> list[nn.Module]:
    """Divide the shared input of a group by ``scale``, folded into its producer where possible.

    Args:
        block: Block with plain linears, changed in place where the family can fold.
        group: The group.
        scale: ``[in_features]``, positive.

    Returns:
        Input transforms of what stays online; the weights of those channels are untouched, the
        transform maps them.
    """
    rest = scale if group.fold is None else fold_scale_(block, group, scale)
    return [] if rest is None else [ChannelScale(storable(rest.float()))]


def apply_scales_(
    block: nn.Module, groups: Sequence[InputGroup], scales: Mapping[str, Tensor]
) -> dict[str, list[nn.Module]]:
    """Divide the shared inputs of groups by their scales, as ``apply_scale_`` does, in place.

    All of them before any rounding: a producer may itself be a linear that is to be rounded.

    Returns:
        Input transforms of what stays online by group, none where a group has no scale.
    """
    return {
        group.name: apply_scale_(block, group, scales[group.name]) if group.name in scales else []
        for group in groups
    }


def weight_absmax(linears: Sequence[nn.Linear]) -> Tensor:
    """max|W_j| over the weights of all linears, ``[in_features]`` in their dtype."""
    return torch.stack([linear.weight.detach().abs().amax(0) for linear in linears]).amax(0)
