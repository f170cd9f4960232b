"""Rounding of tokens to integer codes, each by itself in one pass.

A *lane* is a code as int8 tensor cores take it: a symmetric code is its own lane, and an asymmetric
code c of b bits is the lane c - 2^(b-1), its zero point likewise: an 8-bit code 0..255 fits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
import triton.language as tl

from harness.kernels.triton.launch import on_device, require
from harness.quant.layers.grid import SCALE_FLOOR, affine, code_range

if TYPE_CHECKING:
    from torch import Tensor

MOST_CHANNELS = 32768
"""Widest token: 64 registers of each of the 512 threads of a program hold it in float32."""

_FLOOR = tl.constexpr(SCALE_FLOOR)
_HALF_EVEN = tl.constexpr(1.5 * 2**23)  # adding it leaves float32 no digit behind the point
_FAR = tl.constexpr(2.0**21)  # beyond every code, and where adding _HALF_EVEN still rounds


class Tokens(NamedTuple):
    """Rounded tokens.

    Attributes:
        codes: Lanes, int8 ``[tokens, in_features]``.
        scale: Steps, float32 ``[tokens, groups]``, or without dimensions where static.
        zero: Zero points of the lanes, int8 in the shape of ``scale``; None where symmetric.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None


class Rounding(NamedTuple):
    """How tokens are rounded, as kernels take it.

    Attributes:
        bits: Width, 2 to 8.
        symmetric: Grid without zero point.
        clip_low: Factor on the smallest value of a range.
        clip_high: Factor on the largest.
        static: Step and zero point (of codes, not of lanes) where the grid is static.
    """

    bits: int
    symmetric: bool
    clip_low: float
    clip_high: float
    static: tuple[float, float] | None

    def constants(self) -> dict[str, Any]:
        """The arguments of the kernels that follow from it."""
        low, high = code_range(self.bits, self.symmetric)
        step, zero = self.static or (1.0, 0.0)
        return {
            "clip_low": float(self.clip_low), "clip_high": float(self.clip_high),
            "static_step": step, "static_zero": zero,
            "LOW": float(low), "HIGH": float(high),
            "SHIFT": 0 if self.symmetric else 1 << (self.bits - 1),
            "SYMMETRIC": self.symmetric, "ONE_CLIP": self.clip_low == self.clip_high,
            "STATIC": self.static is not None,
        }  # fmt: skip


def rounding_of(
    bits: int, *, symmetric: bool, clip_low: float, clip_high: float,
    static: tuple[float, float] | None, group: int,
) -> Rounding:  # fmt: skip
    """Check how tokens are to be rounded, and fit the grid of a static range.

    Raises:
        ValueError: The width does not fit int8 lanes, or a static grid is grouped.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"{bits} bits do not fit int8 lanes, 2 to 8 do")
    if static is None:
        return Rounding(bits, symmetric, clip_low, clip_high, None)
    if group:
        raise ValueError("a static grid is one for the tensor, and not grouped")
    low, high = (torch.tensor(end, dtype=torch.float32) for end in static)
    scale, zero = affine(low, high, bits, symmetric=symmetric)
    found = float(scale), 0.0 if zero is None else float(zero)
    return Rounding(bits, symmetric, clip_low, clip_high, found)


def quantize_tokens(
    x: Tensor, bits: int, *, group: int = 0, symmetric: bool = True, clip_low: float = 1.0,
    clip_high: float = 1.0, static: tuple[float, float] | None = None,
) -> Tokens:  # fmt: skip
    """Round tokens to the codes that ``activation_codes`` gives for float32 on a processor.

    All arithmetic is float32: half precision is widened first, as ``quantize_activation`` does.
    On CUDA torch divides by a number by multiplying with its reciprocal, so that a step which the
    simulation finds there may differ from this one in its last bit.

    Args:
        x: float32, float16 or bfloat16 ``[tokens, in_features]``, finite, channels contiguous.
        bits: Width, 2 to 8.
        group: Channels that share a step within a token; 0 for the whole token.
        symmetric: Grid without zero point.
        clip_low: Factor on the smallest value of a range, dynamic grids only.
        clip_high: Factor on the largest value of a range, dynamic grids only.
        static: Smallest and largest value of the range of a static grid; None makes it dynamic.

    Raises:
        ValueError: The shape, the dtype, the width in bits or the device is none of the above, the
            group does not divide the channels, or a token is wider than ``MOST_CHANNELS``.
    """
    rounding = rounding_of(
        bits, symmetric=symmetric, clip_low=clip_low, clip_high=clip_high, static=static,
        group=group,
    )  # fmt: skip
    require_tokens(x, group)
    tokens, width = x.shape
    size = group or width
    groups = width // size
    found = empty_tokens(x, groups, rounding)
    rows, columns = triton.next_power_of_2(groups), triton.next_power_of_2(size)
    if tokens:
        with on_device(x):
            _quantize_tokens[(tokens,)](
                x, *tensors_of(found, x), x.stride(0), groups, size,
                **rounding.constants(), ROWS=rows, COLUMNS=columns,
                num_warps=warps(rows * columns), enable_fp_fusion=False,
            )  # fmt: skip
    return found


def require_tokens(x: Tensor, group: int) -> None:
    """Refuse tokens that a kernel cannot round.

    Raises:
        ValueError: See ``quantize_tokens``.
    """
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"tokens are {x.dtype}, expected float32, float16 or bfloat16")
    if x.ndim != 2 or x.stride(1) != 1:
        raise ValueError(f"tokens have shape {list(x.shape)}, expected [tokens, contiguous width]")
    width = x.shape[1]
    if not 0 < width <= MOST_CHANNELS:
        raise ValueError(f"a token of {width} channels, expected 1 to {MOST_CHANNELS}")
    if group < 0 or (group and width % group):
        raise ValueError(f"width {width} is not a multiple of group size {group}")
    require(x)


def empty_tokens(x: Tensor, groups: int, rounding: Rounding) -> Tokens:
    """Room for rounded tokens; what is static is filled in."""
    tokens, width = x.shape
    codes = torch.empty((tokens, width), dtype=torch.int8, device=x.device)
    if rounding.static is not None:
        step, zero = rounding.static
        shift = 1 << (rounding.bits - 1)
        scale = torch.full((), step, dtype=torch.float32, device=x.device)
        lane = torch.full((), int(zero) - shift, dtype=torch.int8, device=x.device)
        return Tokens(codes, scale, None if rounding.symmetric else lane)
    shape = (tokens, groups)
    scale = torch.empty(shape, dtype=torch.float32, device=x.device)
    if rounding.symmetric:
        return Tokens(codes, scale, None)
    return Tokens(codes, scale, torch.empty(shape, dtype=torch.int8, device=x.device))


def tensors_of(found: Tokens, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The three tensors of rounded tokens, a stand-in for the one that is not there."""
    return found.codes, found.scale, other if found.zero is None else found.zero


def warps(values: int) -> int:
    """Warps of a program that holds so many values: 32 to a thread up to 16 warps."""
    return max(1, min(16, values // 1024))


@triton.jit
def grid_of_rows(  # type: ignore[no-untyped-def]
    x, valid, clip_low, clip_high, static_step, static_zero, LOW: tl.constexpr, HIGH: tl.constexpr,
    SYMMETRIC: tl.constexpr, ONE_CLIP: tl.constexpr, STATIC: tl.constexpr,
):  # fmt: skip
    """Step and zero point of each row of ``x`` [R, C], as [R, 1]: ``activation_grid``."""
    if STATIC:
        scale = tl.zeros([x.shape[0], 1], tl.float32) + static_step
        zero = tl.zeros([x.shape[0], 1], tl.float32) + static_zero
    elif SYMMETRIC and ONE_CLIP:
        magnitude = tl.max(tl.where(valid, tl.abs(x), 0.0), axis=1, keep_dims=True) * clip_high
        scale = tl.maximum(tl.div_rn(tl.abs(magnitude), HIGH), _FLOOR)
        zero = tl.zeros([x.shape[0], 1], tl.float32)
    else:
        low = tl.min(tl.where(valid, x, float("inf")), axis=1, keep_dims=True) * clip_low
        high = tl.max(tl.where(valid, x, float("-inf")), axis=1, keep_dims=True) * clip_high
        if SYMMETRIC:
            magnitude = tl.maximum(tl.abs(low), tl.abs(high))
            scale = tl.maximum(tl.div_rn(magnitude, HIGH), _FLOOR)
            zero = tl.zeros([x.shape[0], 1], tl.float32)
        else:
            low = tl.minimum(low, 0.0)
            high = tl.maximum(high, 0.0)
            scale = tl.maximum(tl.div_rn(high - low, HIGH), _FLOOR)
            zero = half_even(tl.div_rn(-low, scale))  # at most HIGH, since high >= 0
    return scale, zero


@triton.jit
def half_even(value):  # type: ignore[no-untyped-def]
    """Nearest whole number, half to even, of a value that is cut to +-2^21."""
    value = tl.minimum(tl.maximum(value, -_FAR), _FAR)
    return (value + _HALF_EVEN) - _HALF_EVEN


@triton.jit
def lanes_of_rows(  # type: ignore[no-untyped-def]
    x, scale, zero, LOW: tl.constexpr, HIGH: tl.constexpr, SHIFT: tl.constexpr
):
    """Lanes of rows ``x`` [R, C] on their grids [R, 1]: ``encode``."""
    codes = half_even(tl.div_rn(x, scale)) + zero
    codes = tl.minimum(tl.maximum(codes, LOW), HIGH)
    return (codes.to(tl.int32) - SHIFT).to(tl.int8)


@triton.jit
def _quantize_tokens(  # type: ignore[no-untyped-def]
    x, codes, scales, zeros, stride, groups, size,
    clip_low, clip_high, static_step, static_zero,
    LOW: tl.constexpr, HIGH: tl.constexpr, SHIFT: tl.constexpr, SYMMETRIC: tl.constexpr,
    ONE_CLIP: tl.constexpr, STATIC: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One token a program, its groups as the rows of a tile."""
    token = tl.program_id(0).to(tl.int64)
    row = tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    valid = (row < groups) & (column < size)
    place = row * size + column
    values = tl.load(x + token * stride + place, mask=valid, other=0.0).to(tl.float32)
    scale, zero = grid_of_rows(
        values, valid, clip_low, clip_high, static_step, static_zero,
        LOW, HIGH, SYMMETRIC, ONE_CLIP, STATIC,
    )  # fmt: skip
    lanes = lanes_of_rows(values, scale, zero, LOW, HIGH, SHIFT)
    tl.store(codes + token * (groups * size) + place, lanes, mask=valid)
    if not STATIC:
        at = token * groups + row
        tl.store(scales + at, scale, mask=row < groups)
        if not SYMMETRIC:
            tl.store(zeros + at, (zero.to(tl.int32) - SHIFT).to(tl.int8), mask=row < groups)
