"""Rotation of tokens by a Hadamard matrix and their rounding, in one pass.

The rotation is that of ``harness.quant.layers.transform.Hadamard``: signs, then an outer matrix
(Paley, or the identity where the shape is block-diagonal) Kronecker an inner one (Sylvester's). A
token is held in registers; Sylvester's matrix is itself a Kronecker product, so that each factor of
at most 128 rows is one product of small matrices on tensor cores. Their entries are +-1, exact in
TF32, and a value is cut into two TF32 parts, so that products are exact to 22 bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl

from harness.kernels.triton.launch import capability, on_device, require, to_bfloat16
from harness.kernels.triton.tokens import (
    Tokens,
    empty_tokens,
    grid_of_rows,
    lanes_of_rows,
    require_tokens,
    rounding_of,
    tensors_of,
)
from harness.quant.layers.hadamard import hadamard_shape, held_factors

if TYPE_CHECKING:
    from torch import Tensor

LEAST_INNER = 16
"""Smallest power-of-two part of a width: fewer rows than a tensor core multiplies at least."""

MOST_OUTER = 128
"""Largest outer matrix that is kept beside a token; of the Paley orders all but 140 are below."""

MOST_PLACES = 16384
"""Largest tile of a token, its rows filled up to a power of two."""

_MOST_FACTOR = tl.constexpr(128)


class Rotated(NamedTuple):
    """What ``rotate_quantize`` finds.

    Attributes:
        tokens: Lanes, steps and zero points.
        exact: The rotated tokens before the rounding, in the shape and dtype of the input, for a
            branch that reads them; None unless asked for.
    """

    tokens: Tokens
    exact: Tensor | None


def why_not(width: int, group: int = 0) -> str | None:
    """Reason why a width cannot be rotated here; None where it can.

    Refused are power-of-two parts below 16 (widths 12, 20, 1000), outer matrices above 128 rows
    (8960 = 140 x 64), tiles above 16384 places, and groups that are no power of two.
    """
    shape = hadamard_shape(width)
    rows = shape.blocks * shape.outer
    places = triton.next_power_of_2(rows) * shape.inner
    if shape.inner < LEAST_INNER:
        return f"the power-of-two part of width {width} is {shape.inner}, below {LEAST_INNER}"
    if shape.outer > MOST_OUTER:
        return f"width {width} has an outer matrix of {shape.outer} rows, above {MOST_OUTER}"
    if places > MOST_PLACES:
        return f"width {width} fills {places} places, above {MOST_PLACES}"
    if group and group & (group - 1):
        return f"groups of {group} channels are no power of two"
    return None


def rotate_quantize(
    x: Tensor, signs: Tensor, bits: int, *, group: int = 0, symmetric: bool = True,
    clip_low: float = 1.0, clip_high: float = 1.0, static: tuple[float, float] | None = None,
    keep: bool = False,
) -> Rotated:  # fmt: skip
    """Rotate tokens and round them, as ``quantize_tokens(Hadamard(signs)(x), ...)``.

    Sums are made in float32 in another order than by the transform, so that a code may be the
    neighbour of the unfused one; the rotated values are rounded to the dtype of ``x`` first, as the
    transform does.

    Args:
        x: float32, float16 or bfloat16 ``[tokens, in_features]``, finite, channels contiguous.
        signs: +-1, int8 ``[in_features]``.
        bits: Width, 2 to 8.
        group: Channels that share a step within a token, a power of two; 0 for the whole token.
        symmetric: Grid without zero point.
        clip_low: Factor on the smallest value of a range, dynamic grids only.
        clip_high: Factor on the largest value of a range, dynamic grids only.
        static: Smallest and largest value of the range of a static grid; None makes it dynamic.
        keep: Whether to return the rotated tokens before the rounding.

    Raises:
        ValueError: As ``quantize_tokens``; ``why_not`` has a reason; or the signs are no int8
            vector of the width.
    """
    rounding = rounding_of(
        bits, symmetric=symmetric, clip_low=clip_low, clip_high=clip_high, static=static,
        group=group,
    )  # fmt: skip
    require_tokens(x, group)
    require(x, signs)
    tokens, width = x.shape
    if reason := why_not(width, group):
        raise ValueError(reason)
    if signs.dtype != torch.int8 or signs.shape != (width,) or not signs.is_contiguous():
        raise ValueError(f"signs are {signs.dtype} {list(signs.shape)}, expected int8 [{width}]")
    shape = hadamard_shape(width)
    rows = triton.next_power_of_2(shape.blocks * shape.outer)
    found = empty_tokens(x, width // group if group else 1, rounding)
    exact = torch.empty_like(x, memory_format=torch.contiguous_format) if keep else None
    outer = held_factors(width, x.device)[0] if shape.outer > 1 else x
    if tokens:
        with on_device(x):
            _rotate_quantize[(tokens,)](
                x, signs, outer, x if exact is None else exact, *tensors_of(found, x),
                x.stride(0), width, shape.inner**-0.5, **rounding.constants(),
                OUTER=shape.outer, ROWS=rows, INNER=shape.inner,
                COLUMNS=group or rows * shape.inner, KEEP=keep,
                num_warps=_warps(rows * shape.inner, capability(x)), enable_fp_fusion=False,
            )  # fmt: skip
    return Rotated(found, exact)


def _warps(places: int, capability: tuple[int, int]) -> int:
    """Warps of a program, by the registers that Triton 3.6's ptxas gives and spills.

    Of bfloat16 tokens ptxas 12.8 spills on 9.0 nothing up to width 12288, and about 1 kB at 13824
    and 15360; on 8.0 nothing at 1920, 3072 and 13824 and 0.2 kB at 5120, but over 20 kB at 12288
    and 15360: right, and slow.
    """
    return 16 if places > 4096 and capability >= (9, 0) else 8


@triton.jit
def _sylvester(ORDER: tl.constexpr):  # type: ignore[no-untyped-def]
    """Sylvester's matrix with entries +-1: the parity of the bits that row and column share."""
    shared = tl.arange(0, ORDER)[:, None] & tl.arange(0, ORDER)[None, :]
    shared ^= shared >> 8
    shared ^= shared >> 4
    shared ^= shared >> 2
    shared ^= shared >> 1
    return (1 - 2 * (shared & 1)).to(tl.float32)


@triton.jit
def _high(value):  # type: ignore[no-untyped-def]
    """The part of float32 values that TF32 holds."""
    return (value.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)


@triton.jit
def _by_inner(values, ORDER: tl.constexpr, SPLIT: tl.constexpr):  # type: ignore[no-untyped-def]
    """``values`` [R, ORDER] times Sylvester's matrix; SPLIT where TF32 does not hold the values."""
    matrix = _sylvester(ORDER)
    if SPLIT:
        high = _high(values)
        product = tl.dot(high, matrix, input_precision="tf32")
        product = tl.dot(values - high, matrix, acc=product, input_precision="tf32")
    else:
        product = tl.dot(values, matrix, input_precision="tf32")
    return product


@triton.jit
def _by_outer(matrix, values):  # type: ignore[no-untyped-def]
    """``matrix`` [A, A] of +-1 times ``values`` [A, B]."""
    high = _high(values)
    product = tl.dot(matrix, high, input_precision="tf32")
    return tl.dot(matrix, values - high, acc=product, input_precision="tf32")


@triton.jit
def _inner_rotation(  # type: ignore[no-untyped-def]
    values, ROWS: tl.constexpr, INNER: tl.constexpr, SPLIT: tl.constexpr
):
    """Each row of ``values`` [ROWS, INNER] times Sylvester's matrix, by two factors where large."""
    if INNER <= _MOST_FACTOR:
        values = _by_inner(values, INNER, SPLIT)
    else:
        SECOND: tl.constexpr = 16 if INNER <= 2048 else 128
        FIRST: tl.constexpr = INNER // SECOND
        values = _by_inner(tl.reshape(values, [ROWS * FIRST, SECOND]), SECOND, SPLIT)
        turned = tl.trans(tl.reshape(values, [ROWS, FIRST, SECOND]), 0, 2, 1)
        turned = _by_inner(tl.reshape(turned, [ROWS * SECOND, FIRST]), FIRST, True)
        turned = tl.trans(tl.reshape(turned, [ROWS, SECOND, FIRST]), 0, 2, 1)
        values = tl.reshape(turned, [ROWS, INNER])
    return values


@triton.jit
def _outer_rotation(  # type: ignore[no-untyped-def]
    values, outer, OUTER: tl.constexpr, ROWS: tl.constexpr
):
    """The transpose of the outer matrix, filled up with zeros, times ``values`` [ROWS, INNER]."""
    row = tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, ROWS)[None, :]
    inside = (row < OUTER) & (column < OUTER)
    # orthonormal in memory; its signs are exact, and its factor is taken with the inner one
    factor = tl.load(outer + column * OUTER + row, mask=inside, other=0.0)
    sign = tl.where(factor > 0, 1.0, tl.where(factor < 0, -1.0, 0.0))
    return _by_outer(sign, values) * tl.div_rn(1.0, tl.sqrt_rn(OUTER + 0.0))


@triton.jit
def _rotate_quantize(  # type: ignore[no-untyped-def]
    x, signs, outer, exact, codes, scales, zeros, stride, width, factor,
    clip_low, clip_high, static_step, static_zero,
    LOW: tl.constexpr, HIGH: tl.constexpr, SHIFT: tl.constexpr, SYMMETRIC: tl.constexpr,
    ONE_CLIP: tl.constexpr, STATIC: tl.constexpr, OUTER: tl.constexpr, ROWS: tl.constexpr,
    INNER: tl.constexpr, COLUMNS: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """One token a program."""
    token = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, ROWS)[:, None] * INNER + tl.arange(0, INNER)[None, :]
    inside = place < width
    values = tl.load(x + token * stride + place, mask=inside, other=0.0).to(tl.float32)
    values *= tl.load(signs + place, mask=inside, other=0).to(tl.float32)
    # TF32 holds what half precision holds
    values = _inner_rotation(values, ROWS, INNER, x.dtype.element_ty == tl.float32)
    values *= factor
    if OUTER > 1:
        values = _outer_rotation(values, outer, OUTER, ROWS)
    if x.dtype.element_ty == tl.bfloat16:
        narrow = to_bfloat16(values)
    else:
        narrow = values.to(x.dtype.element_ty)
    if KEEP:
        tl.store(exact + token * width + place, narrow, mask=inside)
    GROUPS: tl.constexpr = ROWS * INNER // COLUMNS
    values = tl.reshape(narrow.to(tl.float32), [GROUPS, COLUMNS])
    group = tl.arange(0, GROUPS)[:, None]
    place = group * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = place < width
    scale, zero = grid_of_rows(
        values, inside, clip_low, clip_high, static_step, static_zero,
        LOW, HIGH, SYMMETRIC, ONE_CLIP, STATIC,
    )  # fmt: skip
    lanes = lanes_of_rows(values, scale, zero, LOW, HIGH, SHIFT)
    tl.store(codes + token * width + place, lanes, mask=inside)
    if not STATIC:
        groups = (width + COLUMNS - 1) // COLUMNS
        at = token * groups + group
        tl.store(scales + at, scale, mask=group < groups)
        if not SYMMETRIC:
            tl.store(zeros + at, (zero.to(tl.int32) - SHIFT).to(tl.int8), mask=group < groups)
