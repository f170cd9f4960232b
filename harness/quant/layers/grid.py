"""Uniform integer grids: scale and zero point, rounding, granularity.

A *symmetric* grid of b bits has codes -2^(b-1) .. 2^(b-1)-1 and step max|x| / (2^(b-1)-1)
(S2Q-VDiT, arXiv 2508.04016, eq. 1). An *asymmetric* grid has codes 0 .. 2^b-1, step
(max-min) / (2^b-1) and an integer zero point; its range always contains 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

SCALE_FLOOR = 1e-8
"""Smallest step: a row of zeros must not divide by zero."""


class CodeRange(NamedTuple):
    """Smallest and largest integer code, inclusive."""

    low: int
    high: int


class Affine(NamedTuple):
    """Step and zero point (None on a symmetric grid); both broadcast over the tensor."""

    scale: Tensor
    zero: Tensor | None


def code_range(bits: int, symmetric: bool) -> CodeRange:
    """Codes of a grid."""
    if symmetric:
        return CodeRange(-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    return CodeRange(0, (1 << bits) - 1)


def affine(low: Tensor, high: Tensor, bits: int, *, symmetric: bool) -> Affine:
    """Fit a grid to a range.

    Args:
        low: Smallest value to represent, any shape.
        high: Largest value to represent, same shape.
        bits: Width.
        symmetric: Grid without zero point, its range max(|low|, |high|).

    Returns:
        Step and zero point in the shape of ``low``.
    """
    if symmetric:
        magnitude = torch.maximum(low.abs(), high.abs())
        return Affine((magnitude / code_range(bits, True).high).clamp_min(SCALE_FLOOR), None)
    low, high = low.clamp_max(0), high.clamp_min(0)
    scale = ((high - low) / code_range(bits, False).high).clamp_min(SCALE_FLOOR)
    zero = (-low.detach() / scale.detach()).round().clamp(*code_range(bits, False))
    return Affine(scale, zero)


def encode(x: Tensor, grid: Affine, bits: int) -> Tensor:
    """Nearest codes as floating point numbers; not differentiable."""
    codes = (x / grid.scale).round_()
    if grid.zero is not None:
        codes += grid.zero
    return codes.clamp_(*code_range(bits, grid.zero is None))


def decode(codes: Tensor, grid: Affine) -> Tensor:
    """Values of codes."""
    centred = codes if grid.zero is None else codes - grid.zero
    return centred * grid.scale


def fake_quantize(x: Tensor, grid: Affine, bits: int) -> Tensor:
    """Round to the grid and come back.

    Differentiable in ``x`` (straight through the rounding, zero where clamped) and in the step
    (LSQ, arXiv 1902.08153, eq. 3); the zero point is a constant.
    """
    if torch.is_grad_enabled() and (x.requires_grad or grid.scale.requires_grad):
        rounded: Callable[[Tensor, Tensor, Tensor | None, int], Tensor] = _FakeQuantize.apply
        return rounded(x, grid.scale, grid.zero, bits)
    return decode(encode(x, grid, bits), grid)


class _FakeQuantize(torch.autograd.Function):
    """Rounding with hand-written gradients that keeps its input and its step, and no more.

    Codes and what the rounding lost are made again on the way back, as they were the first time.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor | None, bits: int) -> Tensor:
        ctx.bits = bits
        ctx.save_for_backward(x, scale, zero)
        return _centred_codes(x / scale, zero, bits).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, scale, zero = ctx.saved_tensors
        grad = grads[0]
        ratio = x / scale
        codes = _centred_codes(ratio.clone(), zero, ctx.bits)
        residual = torch.sub(codes, ratio, out=ratio)
        inside = residual.abs() <= 0.5
        grad_x = grad * inside if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return grad_x, None, None, None
        # the residual where the rounding is free, the code where it is clamped
        slope = torch.where(inside, residual, codes)
        return grad_x, slope.mul_(grad).sum_to_size(scale.shape), None, None


def _centred_codes(ratio: Tensor, zero: Tensor | None, bits: int) -> Tensor:
    """Codes minus zero point of values in steps, in the place of those."""
    low, high = code_range(bits, zero is None)
    codes = ratio.round_()
    return codes.clamp_(low, high) if zero is None else codes.clamp_(low - zero, high - zero)


def grouped(x: Tensor, group: int) -> Tensor:
    """View the last dimension as ``[..., groups, group]``; group 0 is one group, the whole width.

    Raises:
        ValueError: The width is not a multiple of the group size.
    """
    width = x.shape[-1]
    size = group or width
    if width % size:
        raise ValueError(f"width {width} is not a multiple of group size {size}")
    return x.reshape(*x.shape[:-1], width // size, size)


def weight_grid(
    weight: Tensor,
    bits: int,
    *,
    symmetric: bool = True,
    group: int = 0,
    clip: Tensor | float = 1.0,
    clip_low: Tensor | float | None = None,
) -> Affine:
    """Grid of a weight, per output channel or per group of input channels.

    Args:
        weight: ``[out_features, in_features]``.
        bits: Width.
        symmetric: Kind of grid.
        group: Input channels that share a step; 0 for the whole row.
        clip: Factor on the row's maximum, number or ``[out_features, groups]``.
        clip_low: Factor on the row's minimum; ``clip`` if None.

    Returns:
        Step and zero point of shape ``[out_features, groups]``.
    """
    rows = grouped(weight, group)
    # min and max by index: their gradient is one scatter, that of amin and amax three more passes
    low, high = rows.min(-1).values, rows.max(-1).values
    low = low * (clip if clip_low is None else clip_low)
    return affine(low, high * clip, bits, symmetric=symmetric)


def expand(grid: Affine, group: int) -> Affine:
    """Repeat a grid ``[out_features, groups]``, if grouped, to one entry for each input channel."""
    if group == 0:
        return grid
    zero = None if grid.zero is None else grid.zero.repeat_interleave(group, -1)
    return Affine(grid.scale.repeat_interleave(group, -1), zero)


def storable(scale: Tensor) -> Tensor:
    """Round steps to what the artifact stores: half precision, single where half is subnormal.

    Codes must be computed from the stored step, so this is applied before the rounding of weights.
    """
    smallest_normal = torch.finfo(torch.float16).tiny
    if bool((scale < smallest_normal).any()) or bool(
        (scale > torch.finfo(torch.float16).max).any()
    ):
        return scale.float()
    return scale.half().float()
