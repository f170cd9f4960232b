"""The quantized linear on int8 tensor cores: exact int32 sums of lanes, then one scaling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton

from harness.kernels.triton.launch import capability, on_device, require
from harness.kernels.triton.product import int8_linear_tile
from harness.kernels.triton.tiles import Tile, chunk_of, pick_tile
from harness.kernels.triton.weight import lane_sums
from harness.quant.layers.pack import unpack

if TYPE_CHECKING:
    from torch import Tensor

MOST_FEATURES = (2**31 - 1) // 2**14
"""131071: the most channels whose products of 8-bit lanes, 2^14 at most each, an int32 holds.

Each of the three terms with a zero point is as large as the sum of products at most, so that 65535
channels are safe with one zero point, and 32767 with two."""

_SWIZZLE = 8  # blocks of tokens whose programs run one after another, so that they share weights
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def most_features(x_zero: bool, w_zero: bool) -> int:
    """Most channels of an int32 sum of 8-bit lanes, by which sides have zero points."""
    return MOST_FEATURES // ((1 + x_zero) * (1 + w_zero))


def int8_matmul(codes: Tensor, weight: Tensor, *, bits: int, signed: bool = True) -> Tensor:
    """The int32 sums of ``int8_linear`` before any scale: ``codes @ weight^T`` of lanes, exact.

    Args:
        codes: Lanes, int8 ``[tokens, in_features]``.
        weight: Lanes, int8 ``[out_features, in_features]``, or packed 4-bit codes.
        bits: Width of the weight.
        signed: Whether packed codes are symmetric; lanes know.

    Returns:
        int32 ``[tokens, out_features]``.

    Raises:
        ValueError: Dtypes or shapes are none of the above, there are more than ``MOST_FEATURES``
            channels, or no kernel can read the tensors.
    """
    _require_lanes(codes, weight, bits)
    if codes.shape[1] > MOST_FEATURES:
        raise ValueError(_too_many(codes.shape[1], MOST_FEATURES))
    shape = codes.shape[0], weight.shape[0]
    out = torch.empty(shape, dtype=torch.int32, device=codes.device)
    tile = pick_tile(*shape, group=0, capability=capability(codes))
    _launch(codes, weight, out, tile, {}, SIGNED=signed, RAW=True)
    return out


def int8_linear(
    codes: Tensor, x_scale: Tensor, x_zero: Tensor | None,
    weight: Tensor, w_scale: Tensor, w_zero: Tensor | None, *,
    bits: int, group: int = 0, w_sums: Tensor | None = None, bias: Tensor | None = None,
    low_rank: tuple[Tensor, Tensor] | None = None, out_dtype: torch.dtype = torch.bfloat16,
    out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """``y = (codes - x_zero) x_scale ((weight - w_zero) w_scale)^T + bias + inner up^T``.

    Tokens and weight may be grouped, by the same group or one of them not at all. Sums are int32;
    those of a group are scaled and added in float32, and the result is rounded once.

    Args:
        codes: Lanes, int8 ``[tokens, in_features]``, channels contiguous.
        x_scale: Steps, float32 ``[tokens, groups]``, or without dimensions where static.
        x_zero: Zero points of the lanes, int8 in the shape of ``x_scale``; None where symmetric.
        weight: Lanes, int8 ``[out_features, in_features]``; or 4-bit codes as they are packed,
            uint8 ``[out_features, in_features / 2]``, symmetric where ``w_zero`` is None.
        w_scale: Steps, float32 ``[out_features, groups]``; fastest where those of a group are
            contiguous.
        w_zero: Zero points of the lanes, int8 in the shape of ``w_scale``; None where symmetric.
        bits: Width of the weight.
        group: Input channels that share a step, a multiple of 32; 0 where neither side is grouped.
        w_sums: ``lane_sums`` of the weight, which a zero point of the tokens needs; made from the
            weight in every call where None.
        bias: ``[out_features]``, any float dtype, or None.
        low_rank: ``inner`` ``[tokens, rank]``, the exact input times ``down^T`` and its gains if
            any, and ``up`` ``[out_features, rank]``, both of one float dtype; multiplied and added
            in float32.
        out_dtype: bfloat16, float16 or float32.
        out: Where the result is written, ``[tokens, out_features]`` contiguous of ``out_dtype``.

    Returns:
        ``[tokens, out_features]``.

    Raises:
        ValueError: Dtypes or shapes are none of the above, the tensors lie where no kernel can
            read them, or a sum has more channels than ``most_features`` allows.
    """
    _require_lanes(codes, weight, bits)
    tokens, width = codes.shape
    rows = weight.shape[0]
    x_scale, x_zero = _grid(x_scale, x_zero, "tokens", tokens, width, group)
    w_scale, w_zero = _grid(w_scale, w_zero, "weight", rows, width, group)
    span = chunk_of(group) if group else width
    most = most_features(x_zero is not None, w_zero is not None)
    if span > most:
        raise ValueError(_too_many(width, most))
    out = _result(out, (tokens, rows), out_dtype, codes)
    _require_extras(codes, rows, bias, low_rank)
    given: dict[str, Any] = {"x_scale": x_scale, "w_scale": w_scale}
    if w_zero is not None:
        given |= {"w_zero": w_zero, "x_sums": lane_sums(codes, group)}
    if x_zero is not None:
        sums = w_sums if w_sums is not None else _weight_sums(weight, w_zero is None, width, group)
        if sums.dtype != torch.int32 or sums.shape != (width // span, rows):
            raise ValueError(f"w_sums are {sums.dtype} {list(sums.shape)}, not those of lane_sums")
        given |= {"x_zero": x_zero, "w_sums": sums.contiguous()}
    if bias is not None:
        given["bias"] = bias.contiguous()
    if low_rank is not None:
        given |= {"inner": low_rank[0].contiguous(), "up": low_rank[1].contiguous()}
    require(codes, weight, out, *given.values())
    tile = pick_tile(tokens, rows, group=group, capability=capability(codes))
    _launch(codes, weight, out, tile, given, SIGNED=w_zero is None, RAW=False, GROUP=group)
    return out


def _too_many(width: int, most: int) -> str:
    return f"{width} channels can overflow an int32 sum of 8-bit codes, at most {most} cannot"


def _require_lanes(codes: Tensor, weight: Tensor, bits: int) -> None:
    if codes.dtype != torch.int8 or codes.ndim != 2 or codes.stride(1) != 1:
        raise ValueError(f"codes are {codes.dtype} {list(codes.shape)}, expected int8 [tokens, in]")
    width = codes.shape[1]
    held = width
    if weight.dtype == torch.uint8:
        if bits != 4 or width % 2:
            raise ValueError(f"packed codes of {bits} bits in rows of {width}; 4 bits in even rows")
        held = width // 2
    elif weight.dtype != torch.int8:
        raise ValueError(f"the weight is {weight.dtype}, expected int8 lanes or packed uint8")
    if weight.ndim != 2 or weight.shape[1] != held or not weight.is_contiguous():
        raise ValueError(f"a weight of shape {list(weight.shape)} for {width} channels")
    if not 2 <= bits <= 8:
        raise ValueError(f"{bits} bits do not fit int8 lanes, 2 to 8 do")
    require(codes, weight)


def _grid(
    scale: Tensor, zero: Tensor | None, side: str, rows: int, width: int, group: int
) -> tuple[Tensor, Tensor | None]:
    """Steps and zero points as ``[rows, groups or 1]``, a static one repeated without memory."""
    if group and width % group:
        raise ValueError(f"width {width} is not a multiple of group size {group}")
    allowed = {1, width // group} if group else {1}
    if scale.ndim == 0:
        scale, zero = scale.expand(rows, 1), None if zero is None else zero.expand(rows, 1)
    fits = scale.dtype == torch.float32 and scale.ndim == 2 and scale.shape[0] == rows
    if not fits or scale.shape[1] not in allowed:
        raise ValueError(f"steps of the {side} are {scale.dtype} {list(scale.shape)}")
    if zero is not None and (zero.dtype != torch.int8 or zero.shape != scale.shape):
        raise ValueError(f"zero points of the {side} are {zero.dtype} {list(zero.shape)}")
    return scale, zero


def _result(out: Tensor | None, shape: tuple[int, int], dtype: torch.dtype, like: Tensor) -> Tensor:
    if dtype not in _DTYPES:
        raise ValueError(f"out_dtype is {dtype}, expected float32, float16 or bfloat16")
    if out is None:
        return torch.empty(shape, dtype=dtype, device=like.device)
    if out.shape != shape or out.dtype != dtype or not out.is_contiguous():
        raise ValueError(f"out is {out.dtype} {list(out.shape)}, expected {dtype} {list(shape)}")
    return out


def _require_extras(
    codes: Tensor, rows: int, bias: Tensor | None, low_rank: tuple[Tensor, Tensor] | None
) -> None:
    if bias is not None and (bias.shape != (rows,) or bias.dtype not in _DTYPES):
        raise ValueError(f"the bias is {bias.dtype} {list(bias.shape)}, expected float [{rows}]")
    if low_rank is None:
        return
    inner, up = low_rank
    fits = inner.ndim == up.ndim == 2 and inner.shape[1] == up.shape[1] > 0
    if not fits or len(inner) != len(codes) or len(up) != rows:
        raise ValueError(f"a branch of shapes {list(inner.shape)} and {list(up.shape)}")
    if inner.dtype != up.dtype or inner.dtype not in _DTYPES:
        raise ValueError(f"a branch of dtypes {inner.dtype} and {up.dtype}")


def _weight_sums(weight: Tensor, signed: bool, width: int, group: int) -> Tensor:
    if weight.dtype == torch.uint8:
        codes = unpack(weight.view(-1), 4, (len(weight), width), signed=signed)
        weight = codes if signed else codes.to(torch.int8) - 8
    return lane_sums(weight, group)


def _launch(
    codes: Tensor, weight: Tensor, out: Tensor, tile: Tile, given: dict[str, Any], *, SIGNED: bool,
    RAW: bool, GROUP: int = 0,
) -> None:  # fmt: skip
    """Start the kernel; what is not given is replaced by a stand-in that it does not read."""
    (tokens, width), rows = codes.shape, weight.shape[0]
    if not tokens or not rows:
        return
    names = ("x_scale", "x_zero", "x_sums", "w_scale", "w_zero", "w_sums", "bias", "inner", "up")
    tensors = {name: given.get(name, codes) for name in names}
    rank = given["inner"].shape[1] if "inner" in given else 0
    grouped = {f"GROUPED_{side}": given[key].shape[1] > 1 if key in given else False
               for side, key in (("X", "x_scale"), ("W", "w_scale"))}  # fmt: skip
    grid = (triton.cdiv(tokens, tile.tokens) * triton.cdiv(rows, tile.out),)
    with on_device(codes):
        int8_linear_tile[grid](
            codes, weight, out, **tensors, tokens=tokens, rows=rows, width=width,
            codes_stride=codes.stride(0),
            x_row=tensors["x_scale"].stride(0), x_group=tensors["x_scale"].stride(1),
            xz_row=tensors["x_zero"].stride(0), xz_group=tensors["x_zero"].stride(1),
            w_row=tensors["w_scale"].stride(0), w_group=tensors["w_scale"].stride(1),
            wz_row=tensors["w_zero"].stride(0), wz_group=tensors["w_zero"].stride(1),
            PACKED=weight.dtype == torch.uint8, SIGNED=SIGNED, RAW=RAW, GROUP=GROUP, **grouped,
            X_ZERO="x_zero" in given, W_ZERO="w_zero" in given, BIAS="bias" in given,
            RANK=rank, STEPS=triton.cdiv(width, tile.inner), EVEN=width % tile.inner == 0,
            TOKENS=tile.tokens, ROWS=tile.out, INNER=tile.inner, SWIZZLE=_SWIZZLE,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
