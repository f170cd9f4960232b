"""Dense packing of integer codes: b bits a code, 4-bit codes two to a byte.

The codes are one stream of bits, lowest first. Both ways are tensor operations that run where the
tensor lies, and eight codes are always a whole number of bytes, so that any eight rows of a matrix
can be unpacked alone.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_CHUNK = 1 << 22
"""Codes packed at a time (a multiple of 8, so that chunks end on whole bytes)."""


class PackedCodes(NamedTuple):
    """A matrix of codes as it is held and stored.

    Attributes:
        data: uint8 ``[ceil(out_features * in_features * bits / 8)]``.
        shape: ``(out_features, in_features)``.
    """

    data: Tensor
    shape: tuple[int, int]


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes into bytes.

    Args:
        codes: Codes of any shape and dtype, signed (symmetric) or not, within ``bits`` bits.
        bits: Width, 2 to 8.

    Returns:
        uint8 ``[ceil(codes * bits / 8)]`` on the same device; 4-bit codes have the even index in
        the low nibble.
    """
    flat = codes.reshape(-1)
    parts = [_pack(flat[i : i + _CHUNK], bits) for i in range(0, flat.numel(), _CHUNK)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.uint8, device=codes.device)


def unpack(packed: Tensor, bits: int, shape: tuple[int, ...], *, signed: bool) -> Tensor:
    """Undo ``pack``.

    Args:
        packed: uint8 bytes; may be more than are needed.
        bits: Width.
        shape: Shape of the codes.
        signed: Whether the codes are symmetric (int8) or not (uint8).

    Returns:
        Codes of ``shape`` on the same device.
    """
    count = math.prod(shape)
    packed = packed[: packed_bytes(count, bits)]
    raw = packed if bits == 8 else _unpack(packed, bits)[:count]
    if not signed:
        return raw.reshape(shape)
    if bits == 8:
        return raw.view(torch.int8).reshape(shape)
    half = 1 << (bits - 1)
    return (raw ^ half).view(torch.int8).sub_(half).reshape(shape)


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of so many codes."""
    return -(-count * bits // 8)


def _pack(codes: Tensor, bits: int) -> Tensor:
    raw = (codes.to(torch.int16) & ((1 << bits) - 1)).to(torch.uint8)
    if bits == 8:
        return raw
    size = packed_bytes(raw.numel(), bits)
    if bits in (2, 4):
        rows = _filled(raw, 8 // bits)
        for i in range(1, 8 // bits):
            rows[:, 0] |= rows[:, i] << (bits * i)
        return rows[:, 0].contiguous()
    rows = _filled(raw, 8)
    word = rows[:, 0].long()
    for i in range(1, 8):
        word |= rows[:, i].long() << (bits * i)
    parts = torch.empty(len(word), bits, dtype=torch.uint8, device=raw.device)
    for i in range(bits):
        parts[:, i] = (word >> (8 * i)) & 0xFF
    return parts.reshape(-1)[:size].clone()


def _unpack(packed: Tensor, bits: int) -> Tensor:
    """Codes as they lie in the bits, uint8 ``[codes]``, with those that fill the last group."""
    mask = (1 << bits) - 1
    if bits in (2, 4):
        each = 8 // bits
        codes = torch.empty(packed.numel(), each, dtype=torch.uint8, device=packed.device)
        for i in range(each):
            codes[:, i] = (packed >> (bits * i)) & mask
        return codes.reshape(-1)
    rows = _filled(packed, bits)
    word = rows[:, 0].long()
    for i in range(1, bits):
        word |= rows[:, i].long() << (8 * i)
    codes = torch.empty(len(word), 8, dtype=torch.uint8, device=packed.device)
    for i in range(8):
        codes[:, i] = (word >> (bits * i)) & mask
    return codes.reshape(-1)


def _filled(flat: Tensor, size: int) -> Tensor:
    """``[rows, size]``, zeros behind the end."""
    short = -flat.numel() % size
    return (torch.cat([flat, flat.new_zeros(short)]) if short else flat).view(-1, size)
