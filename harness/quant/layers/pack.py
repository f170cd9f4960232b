"""Dense packing of integer codes: b bits a code, 4-bit codes two to a byte."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_CHUNK = 1 << 22
"""Codes unpacked to single bits at a time (a multiple of 8, so that chunks end on whole bytes)."""


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes into bytes.

    Args:
        codes: int8 (symmetric) or uint8 (asymmetric) codes of any shape, within ``bits`` bits.
        bits: Width, 2 to 8.

    Returns:
        uint8 ``[ceil(codes * bits / 8)]``; 4-bit codes have the even index in the low nibble.
    """
    flat = codes.reshape(-1).cpu()
    raw = (flat.to(torch.int16) & ((1 << bits) - 1)).to(torch.uint8)
    if bits == 8:
        return raw.clone()
    if bits == 4:
        if raw.numel() % 2:
            raw = torch.cat([raw, raw.new_zeros(1)])
        return raw[0::2] | (raw[1::2] << 4)
    shifts = np.arange(bits, dtype=np.uint8)
    parts = [
        np.packbits((raw.numpy()[i : i + _CHUNK, None] >> shifts) & 1, bitorder="little")
        for i in range(0, raw.numel(), _CHUNK)
    ]
    return torch.from_numpy(np.concatenate(parts))


def unpack(packed: Tensor, bits: int, shape: tuple[int, ...], *, signed: bool) -> Tensor:
    """Undo ``pack``.

    Args:
        packed: uint8 bytes.
        bits: Width.
        shape: Shape of the codes.
        signed: Whether the codes are symmetric (int8) or not (uint8).
    """
    count = int(np.prod(shape))
    if bits == 8:
        raw = packed
    elif bits == 4:
        raw = torch.stack([packed & 0xF, packed >> 4], -1).reshape(-1)[:count]
    else:
        raw = torch.from_numpy(_unpack_bits(packed.numpy(), bits, count))
    if not signed:
        return raw.reshape(shape)
    wide = raw.to(torch.int16)
    return (
        torch.where(wide >= 1 << (bits - 1), wide - (1 << bits), wide).to(torch.int8).reshape(shape)
    )


def _unpack_bits(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    weights = (1 << np.arange(bits)).astype(np.uint8)
    step = _CHUNK * bits // 8
    parts = []
    for i in range(0, packed.size, step):
        stream = np.unpackbits(packed[i : i + step], bitorder="little")
        whole = stream.size // bits * bits
        parts.append((stream[:whole].reshape(-1, bits) * weights).sum(-1, dtype=np.uint8))
    return np.concatenate(parts)[:count]
