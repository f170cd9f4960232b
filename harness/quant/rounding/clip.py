"""Choosing the clipping range of a weight by search."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.quant.layers.grid import (
    Affine,
    affine,
    expand,
    fake_quantize,
    grouped,
    storable,
    weight_grid,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

SHRINK_LOWEST = 0.2
SHRINK_STEP = 0.01


def search_clip(weight: Tensor, bits: int, *, symmetric: bool = True, group: int = 0) -> Tensor:
    """Find for each row (and group) the shrink factor with the smallest squared weight error.

    The linear search of QuaRot (arXiv 2404.00456, sec. 5, "clipping"); factors 1, 0.99, ... 0.2.

    Args:
        weight: ``[out_features, in_features]``.
        bits: Width.
        symmetric: Kind of grid.
        group: Group size, 0 for none.

    Returns:
        Factors ``[out_features, groups]``.
    """
    factors = torch.arange(1.0, SHRINK_LOWEST - SHRINK_STEP / 2, -SHRINK_STEP, device=weight.device)
    full = weight_grid(weight, bits, symmetric=symmetric, group=group)
    best = torch.ones_like(full.scale)
    least = torch.full_like(full.scale, float("inf"))
    for factor in factors.tolist():
        grid = weight_grid(weight, bits, symmetric=symmetric, group=group, clip=factor)
        error = (fake_quantize(weight, expand(grid, group), bits) - weight).square()
        error = error.reshape(*full.scale.shape, -1).sum(-1)
        better = error < least
        best[better], least[better] = factor, error[better]
    return best


def search_output_clip(
    weight: Tensor,
    hessian: Tensor,
    bits: int,
    shrinks: Sequence[float],
    *,
    symmetric: bool,
    group: int = 0,
) -> Affine:
    """Find for each row and group the range whose partial output over its channels is nearest.

    The clip search of AWQ (arXiv 2306.00978, released code): weights are clamped to a share of the
    largest magnitude of their group.

    Args:
        weight: ``[out_features, in_features]``.
        hessian: Second moment of its inputs, ``[in_features, in_features]``.
        bits: Width.
        shrinks: Shares to try; the first of equals is taken.
        symmetric: Kind of grid.
        group: Group size, 0 for none.

    Returns:
        Step, in storage precision, and zero point ``[out_features, groups]``.

    Raises:
        ValueError: No share was given.
    """
    size = group or weight.shape[1]
    count = weight.shape[1] // size
    # diagonal blocks [groups, group, group]: a group is judged by its own channels alone
    blocks = hessian.reshape(count, size, count, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    best: Affine | None = None
    least = torch.full((weight.shape[0], count), float("inf"), device=weight.device).double()
    for shrink in shrinks:
        grid = _shrunk_grid(weight, bits, shrink, symmetric, group)
        rounded = fake_quantize(weight, expand(grid, group), bits)
        wrong = grouped((rounded - weight).double(), group).transpose(0, 1)
        error = (wrong @ blocks).mul_(wrong).sum(-1).T
        better = error < least
        least = torch.where(better, error, least)
        best = grid if best is None else _either(better, grid, best)
    if best is None:
        raise ValueError("no share was given")
    return best


def _shrunk_grid(weight: Tensor, bits: int, shrink: float, symmetric: bool, group: int) -> Affine:
    """Grid of weights clamped to ``shrink`` times the largest magnitude of their group."""
    rows = grouped(weight, group)
    limit = rows.abs().amax(-1) * shrink
    low, high = rows.amin(-1).maximum(-limit), rows.amax(-1).minimum(limit)
    grid = affine(low, high, bits, symmetric=symmetric)
    return Affine(storable(grid.scale), grid.zero)


def _either(first: Tensor, a: Affine, b: Affine) -> Affine:
    """``a`` where ``first``, else ``b``."""
    scale = torch.where(first, a.scale, b.scale)
    if a.zero is None or b.zero is None:
        return Affine(scale, None)
    return Affine(scale, torch.where(first, a.zero, b.zero))


def percentile_grid(x: Tensor, bits: int, percentiles: tuple[float, ...]) -> Affine:
    """Per-row asymmetric grid whose range is the percentile pair with the smallest squared error.

    The initialisation of PTQ4DiT's code, after Q-Diffusion: clip to [q_(1-p), q_p] for three p.

    Args:
        x: ``[rows, values]``.
        bits: Width.
        percentiles: Candidate p in (0.5, 1].

    Returns:
        Step and zero point ``[rows, 1]``.
    """
    ordered = x.sort(-1).values
    best: Affine | None = None
    least = torch.full((x.shape[0], 1), float("inf"), device=x.device)
    for p in percentiles:
        low, high = (_quantile(ordered, q) for q in (1 - p, p))
        grid = affine(low, high, bits, symmetric=False)
        error = (fake_quantize(x, grid, bits) - x).square().sum(-1, keepdim=True)
        better = error < least
        least = torch.where(better, error, least)
        if best is None or best.zero is None or grid.zero is None:
            best = grid
        else:
            best = Affine(
                torch.where(better, grid.scale, best.scale),
                torch.where(better, grid.zero, best.zero),
            )
    if best is None:
        raise ValueError("no percentile was given")
    return best


def _quantile(ordered: Tensor, q: float) -> Tensor:
    """Per-row quantile of sorted rows, linear between ranks (``torch.quantile`` of any size).

    Between ranks and not the nearest one: in a row of a few hundred weights the nearest rank of
    every candidate is the extreme itself, and the search would choose between equals.
    """
    rank = q * (ordered.shape[-1] - 1)
    low = math.floor(rank)
    high = math.ceil(rank)
    return torch.lerp(ordered[..., low : low + 1], ordered[..., high : high + 1], rank - low)
