"""Bounded-init grid refinement, the data-free weight rounding of DVD-Quant (arXiv 2505.18663).

The squared error ``||W - scale (codes - zero)||^2`` of every row is lowered in two stages:

1. *Bounded initialisation*: the range of the row is tightened from below and from above, each bound
   on its own, and the pair with the smallest error is kept.
2. *Refinement* by coordinate descent: step, zero point and codes take in turn the value that is
   best for the two others. Each of the three is a closed form and none can raise the error, so
   the descent converges.

Rows never depend on one another.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.quant import Affine, code_range, decode, encode, grouped, weight_grid

LOWEST_BOUND = 0.2
BOUND_STEP = 0.01
ITERATIONS = 50
TOLERANCE = 1e-4
CHUNK_VALUES = 1 << 22
"""Weights treated at once: the search holds a few copies of them."""


def bounded_grid_refinement(
    weight: Tensor,
    bits: int,
    *,
    group: int = 0,
    iterations: int = ITERATIONS,
    tolerance: float = TOLERANCE,
) -> Affine:
    """Asymmetric grid of a weight, its squared error never above that of the min-max grid.

    Args:
        weight: ``[out_features, in_features]``.
        bits: Width.
        group: Input channels that share a step; 0 for the whole row.
        iterations: Most steps of the coordinate descent; 0 leaves the bounded initialisation.
        tolerance: A row is done once its error falls by less than this fraction in a step.

    Returns:
        Step and zero point ``[out_features, groups]``; codes follow by rounding to nearest.
    """
    rows = grouped(weight, group).to(torch.promote_types(weight.dtype, torch.float32))
    flat = rows.reshape(-1, rows.shape[-1])
    parts = [
        refined(chunk, bounded_grid(chunk, bits), bits, iterations=iterations, tolerance=tolerance)
        for chunk in flat.split(max(1, CHUNK_VALUES // flat.shape[1]))
    ]
    shape = rows.shape[:-1]
    scale = torch.cat([part.scale for part in parts]).reshape(shape)
    return Affine(scale, torch.cat([_zero(part) for part in parts]).reshape(shape))


def grid_error(rows: Tensor, grid: Affine, bits: int) -> Tensor:
    """Squared error of rounding every row to nearest, ``[rows, 1]``."""
    return (decode(encode(rows, grid, bits), grid) - rows).square().sum(-1, keepdim=True)


def bounded_grid(rows: Tensor, bits: int) -> Affine:
    """Search the bounds of every row; factors 1, 0.99, ... 0.2 on its minimum and its maximum.

    Both bounds are first tightened together, then the lower one alone, then the upper one alone: a
    row with outliers on one side only is cut on that side only.

    Args:
        rows: ``[rows, values]``.
        bits: Width.

    Returns:
        Step and zero point ``[rows, 1]`` with the smallest squared error seen; min-max is seen
        first.
    """
    factors = _factors()
    low = torch.ones_like(rows[:, :1])
    high = torch.ones_like(low)
    least = torch.full_like(low, float("inf"))
    for moves_low, moves_high in ((True, True), (True, False), (False, True)):
        start_low, start_high = low, high
        for factor in factors:
            tried_low = torch.full_like(low, factor) if moves_low else start_low
            tried_high = torch.full_like(high, factor) if moves_high else start_high
            error = grid_error(rows, _bounded(rows, bits, tried_low, tried_high), bits)
            better = error < least
            least = torch.where(better, error, least)
            low = torch.where(better, tried_low, low)
            high = torch.where(better, tried_high, high)
    return _bounded(rows, bits, low, high)


def refined(rows: Tensor, start: Affine, bits: int, *, iterations: int, tolerance: float) -> Affine:
    """Coordinate descent from a grid, every row until its error stops falling.

    Args:
        rows: ``[rows, values]``.
        start: Step and zero point ``[rows, 1]``.
        bits: Width.
        iterations: Most steps.
        tolerance: Smallest relative fall of a row's error worth another step.

    Returns:
        Step and zero point ``[rows, 1]``.
    """
    scale, zero = start.scale, _zero(start)
    error = grid_error(rows, start, bits)
    running = torch.ones_like(error, dtype=torch.bool)
    for _ in range(iterations):
        codes = encode(rows, Affine(scale, zero), bits)
        step = best_scale(rows, codes, zero, scale)
        offset = best_zero(rows, codes, step, bits)
        fallen = grid_error(rows, Affine(step, offset), bits)
        # in floating point a converged row may rise by an ulp: it stays where it is
        taken = running & (fallen < error)
        running = running & (error - fallen > tolerance * error)
        scale, zero = torch.where(taken, step, scale), torch.where(taken, offset, zero)
        error = torch.where(taken, fallen, error)
        if not bool(running.any()):
            break
    return Affine(scale, zero)


def best_scale(rows: Tensor, codes: Tensor, zero: Tensor, scale: Tensor) -> Tensor:
    """Least-squares step of every row, ``<Q - z, W> / <Q - z, Q - z>``.

    Args:
        rows: ``[rows, values]``.
        codes: Codes of the same shape.
        zero: ``[rows, 1]``.
        scale: Step to keep where every code is the zero point, ``[rows, 1]``.
    """
    centred = codes - zero
    along = (centred * rows).sum(-1, keepdim=True)
    return torch.where(along > 0, along / centred.square().sum(-1, keepdim=True), scale)


def best_zero(rows: Tensor, codes: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Best integer zero point of every row: its mean of ``Q - W / scale``, rounded and clamped.

    Args:
        rows: ``[rows, values]``.
        codes: Codes of the same shape.
        scale: ``[rows, 1]``.
        bits: Width.
    """
    mean = (codes - rows / scale).mean(-1, keepdim=True)
    return mean.round().clamp(*code_range(bits, False))


def _factors() -> list[float]:
    steps = round((1 - LOWEST_BOUND) / BOUND_STEP)
    return [1 - BOUND_STEP * i for i in range(steps + 1)]


def _bounded(rows: Tensor, bits: int, low: Tensor, high: Tensor) -> Affine:
    return weight_grid(rows, bits, symmetric=False, clip=high, clip_low=low)


def _zero(grid: Affine) -> Tensor:
    if grid.zero is None:
        raise ValueError("the grid is symmetric: it has no zero point to refine")
    return grid.zero
