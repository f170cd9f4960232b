"""The kernel of the quantized linear.

With lanes a and w, their zero points p and q and steps s and t, the sum over the n channels of a
row or of a chunk is ``s t (sum a w - q sum a - p sum w + n p q)``; the bracket is int32, exact.

Shapes in brackets are those of a tile. Bounds of loops are constants of the kernel: the interpreter
of Triton 3.6 cannot take others beside NumPy 2.4.
"""

from __future__ import annotations

import triton
import triton.language as tl

from harness.kernels.triton.launch import IN_INTERPRETER, to_bfloat16


@triton.jit
def int8_linear_tile(  # type: ignore[no-untyped-def]
    codes, weight, out, x_scale, x_zero, x_sums, w_scale, w_zero, w_sums, bias, inner, up,
    tokens, rows, width, codes_stride, x_row, x_group, xz_row, xz_group, w_row, w_group,
    wz_row, wz_group,
    PACKED: tl.constexpr, SIGNED: tl.constexpr, RAW: tl.constexpr, GROUP: tl.constexpr,
    GROUPED_X: tl.constexpr, GROUPED_W: tl.constexpr, X_ZERO: tl.constexpr, W_ZERO: tl.constexpr,
    BIAS: tl.constexpr, RANK: tl.constexpr, STEPS: tl.constexpr, EVEN: tl.constexpr,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, INNER: tl.constexpr, SWIZZLE: tl.constexpr,
):  # fmt: skip
    """One tile of the output a program."""
    token_block, row_block = _block(tl.program_id(0), tokens, rows, TOKENS, ROWS, SWIZZLE)
    token = token_block * TOKENS + tl.arange(0, TOKENS)
    row = row_block * ROWS + tl.arange(0, ROWS)
    inside = (token < tokens)[:, None] & (row < rows)[None, :]
    # places behind the end read the last one, and are not written
    token = tl.minimum(token, tokens - 1)
    row = tl.minimum(row, rows - 1)
    held = (width // 2) if PACKED else width
    x_at = codes + token.to(tl.int64)[:, None] * codes_stride
    w_at = weight + row.to(tl.int64)[:, None] * held
    if GROUP == 0:
        total = _row_sums(x_at, w_at, width, held, PACKED, SIGNED, STEPS, EVEN, TOKENS, ROWS, INNER)
        if not RAW:
            total = _centred(
                total, x_zero + token * xz_row, x_sums + token, w_zero + row * wz_row,
                w_sums + row, width, X_ZERO, W_ZERO,
            ).to(tl.float32)  # fmt: skip
    else:
        total = _group_sums(
            x_at, w_at, width, held, x_scale + token * x_row, x_group, w_scale + row * w_row,
            w_group, x_zero + token * xz_row, xz_group, w_zero + row * wz_row, wz_group,
            x_sums + token, tokens, w_sums + row, rows, PACKED, SIGNED, GROUP, GROUPED_X,
            GROUPED_W, X_ZERO, W_ZERO, STEPS, TOKENS, ROWS, INNER,
        )  # fmt: skip
    if not RAW:
        if not GROUPED_X:
            total *= tl.load(x_scale + token * x_row)[:, None]
        if not GROUPED_W:
            total *= tl.load(w_scale + row * w_row)[None, :]
        total = _with_extras(total, bias, inner, up, token, row, BIAS, RANK)
    _store(out + token.to(tl.int64)[:, None] * rows + row[None, :], total, inside)


@triton.jit
def _row_sums(  # type: ignore[no-untyped-def]
    x_at, w_at, width, held, PACKED: tl.constexpr, SIGNED: tl.constexpr, STEPS: tl.constexpr,
    EVEN: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """int32 sums of products of lanes over all channels, ``[TOKENS, ROWS]``."""
    sums = tl.zeros((TOKENS, ROWS), tl.int32)
    for step in range(STEPS):
        x_tile = _tile(x_at, step, width, EVEN, INNER)
        w_tile = _weight_tile(w_at, step, held, EVEN, PACKED, SIGNED, ROWS, INNER)
        sums = tl.dot(x_tile, tl.trans(w_tile), acc=sums, out_dtype=tl.int32)
    return sums


@triton.jit
def _group_sums(  # type: ignore[no-untyped-def]
    x_at, w_at, width, held, x_scale, x_group, w_scale, w_group, x_zero, xz_group, w_zero, wz_group,
    x_sums, tokens, w_sums, rows,
    PACKED: tl.constexpr, SIGNED: tl.constexpr, GROUP: tl.constexpr, GROUPED_X: tl.constexpr,
    GROUPED_W: tl.constexpr, X_ZERO: tl.constexpr, W_ZERO: tl.constexpr, STEPS: tl.constexpr,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """float32 sums of the chunks, each exact in int32 and scaled by the steps of its group."""
    total = tl.zeros((TOKENS, ROWS), tl.float32)
    for step in range(STEPS):
        x_tile = _tile(x_at, step, width, True, INNER)
        w_tile = _weight_tile(w_at, step, held, True, PACKED, SIGNED, ROWS, INNER)
        part = tl.dot(x_tile, tl.trans(w_tile), out_dtype=tl.int32)
        group = step * INNER // GROUP
        part = _centred(
            part, x_zero + (group * xz_group if GROUPED_X else 0), x_sums + step * tokens,
            w_zero + (group * wz_group if GROUPED_W else 0), w_sums + step * rows, INNER,
            X_ZERO, W_ZERO,
        ).to(tl.float32)  # fmt: skip
        if GROUPED_X:
            part *= tl.load(x_scale + group * x_group)[:, None]
        if GROUPED_W:
            part *= tl.load(w_scale + group * w_group)[None, :]
        total += part
    return total


@triton.jit
def _block(  # type: ignore[no-untyped-def]
    program, tokens, rows, TOKENS: tl.constexpr, ROWS: tl.constexpr, SWIZZLE: tl.constexpr
):
    """Which tile a program computes: down ``SWIZZLE`` blocks of tokens, then the next rows."""
    token_blocks = (tokens + TOKENS - 1) // TOKENS
    row_blocks = (rows + ROWS - 1) // ROWS
    band = program // (SWIZZLE * row_blocks)
    height = tl.minimum(token_blocks - band * SWIZZLE, SWIZZLE)
    within = program % (SWIZZLE * row_blocks)
    return band * SWIZZLE + within % height, within // height


@triton.jit
def _tile(  # type: ignore[no-untyped-def]
    start, step, width, EVEN: tl.constexpr, BYTES: tl.constexpr
):
    """The next bytes of some rows ``[rows, BYTES]``; 0 behind their end."""
    place = step * BYTES + tl.arange(0, BYTES)[None, :]
    return tl.load(start + place, mask=None if EVEN else place < width, other=None if EVEN else 0)


@triton.jit
def _weight_tile(  # type: ignore[no-untyped-def]
    start, step, held, EVEN: tl.constexpr, PACKED: tl.constexpr, SIGNED: tl.constexpr,
    ROWS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Lanes ``[ROWS, INNER]`` of a weight. Behind the end they need not be 0: the tokens' are."""
    if PACKED:
        found = _unpacked(_tile(start, step, held, EVEN, INNER // 2), SIGNED, ROWS, INNER)
    else:
        found = _tile(start, step, held, EVEN, INNER)
    return found


@triton.jit
def _unpacked(  # type: ignore[no-untyped-def]
    pairs, SIGNED: tl.constexpr, ROWS: tl.constexpr, INNER: tl.constexpr
):
    """Lanes [ROWS, INNER] of 4-bit codes [ROWS, INNER / 2], the even ones in the low nibbles."""
    low = pairs & 15
    high = pairs >> 4
    if SIGNED:  # two's complement: its first bit turned makes it the code of an asymmetric grid
        low = low ^ 8
        high = high ^ 8
    lanes = tl.reshape(tl.join(low, high), [ROWS, INNER])
    return lanes.to(tl.int8, bitcast=True) - 8


@triton.jit
def _centred(  # type: ignore[no-untyped-def]
    sums, x_zero, x_sums, w_zero, w_sums, count, X_ZERO: tl.constexpr, W_ZERO: tl.constexpr
):
    """Sums of products of codes without their zero points, from those of lanes."""
    if W_ZERO:
        w_point = tl.load(w_zero).to(tl.int32)[None, :]
        sums -= tl.load(x_sums)[:, None] * w_point
    if X_ZERO:
        x_point = tl.load(x_zero).to(tl.int32)[:, None]
        sums -= x_point * tl.load(w_sums)[None, :]
        if W_ZERO:
            sums += x_point * (w_point * count)
    return sums


@triton.jit
def _with_extras(  # type: ignore[no-untyped-def]
    total, bias, inner, up, token, row, BIAS: tl.constexpr, RANK: tl.constexpr
):
    """``total`` [TOKENS, ROWS] plus bias plus ``inner up^T``, 32 of the rank at a time."""
    if BIAS:
        total += tl.load(bias + row).to(tl.float32)[None, :]
    if RANK:  # without, what stands in for the branch could not be multiplied
        place = tl.arange(0, 32)[None, :]
        for start in range(0, RANK, 32):
            inside = start + place < RANK
            at = start + place
            left = tl.load(inner + token.to(tl.int64)[:, None] * RANK + at, mask=inside, other=0.0)
            right = tl.load(up + row.to(tl.int64)[:, None] * RANK + at, mask=inside, other=0.0)
            if IN_INTERPRETER:
                left = left.to(tl.float32)
                right = right.to(tl.float32)
            total = tl.dot(left, tl.trans(right), acc=total, input_precision="ieee")
    return total


@triton.jit
def _store(at, total, inside):  # type: ignore[no-untyped-def]
    """Write a tile in the dtype of the output, rounded once."""
    if at.dtype.element_ty == tl.bfloat16:
        tl.store(at, to_bfloat16(total), mask=inside)
    else:
        tl.store(at, total.to(at.dtype.element_ty), mask=inside)
