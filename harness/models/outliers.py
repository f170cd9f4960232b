"""``shapes-outliers``: the same function, made hard to quantize.

Real video DiTs owe the outlier channels of their activations to the adaLN scale and shift. The
exact inverse of the folding rules plants such channels: a few channels of the modulated inputs are
multiplied by a large factor and the weights that read them divided by it, so the full-precision
model computes the same function. A controlled stress test, not a real model; because the planted
channels are static, it favours methods that scale channels by construction.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness.models.families.base import Family, linear_at
from harness.models.families.fold import fold_scale_
from harness.models.families.fold_targets import ModulationFold, TableFold

FRACTION = 0.02
"""Share of the channels that are planted, in both norms of every block; chosen here, not measured
on a published model: enough to break min-max at 4 bits and not at 8."""

MAGNITUDE = (15.0, 45.0)
"""Range of the factors, drawn log-uniformly; chosen here for the same reason."""

SEED = 20_405_016
"""Seed of the planted channels and factors; fixed, so that the model is one model."""


def planted_scale(width: int, generator: torch.Generator) -> Tensor:
    """Draw the divisors of one input: 1 for most channels, 1/factor for the planted ones.

    Args:
        width: Channels.
        generator: CPU generator.

    Returns:
        ``[width]`` float64, to be folded (activations are divided by it).
    """
    count = max(1, round(FRACTION * width))
    channels = torch.randperm(width, generator=generator)[:count]
    low, high = (torch.tensor(m, dtype=torch.float64).log() for m in MAGNITUDE)
    draw = torch.rand(count, generator=generator, dtype=torch.float64)
    scale = torch.ones(width, dtype=torch.float64)
    scale[channels] = (-(low + (high - low) * draw)).exp()
    return scale


def plant_outliers_(transformer: nn.Module, family: Family) -> None:
    """Plant outlier channels in every modulated input, in place, without changing the function."""
    generator = torch.Generator().manual_seed(SEED)
    for _, block in family.blocks(transformer):
        for group in family.groups(block):
            if isinstance(group.fold, ModulationFold | TableFold):
                width = linear_at(block, group.linears[0]).in_features
                fold_scale_(block, group, planted_scale(width, generator).float())
