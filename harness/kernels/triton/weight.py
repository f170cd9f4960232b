"""Weights as the kernels read them: lanes, with zero points that belong to them and row sums."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from harness.kernels.triton.tiles import chunk_of
from harness.quant.layers.pack import packed_bytes, unpack

if TYPE_CHECKING:
    from torch import Tensor


class Weight(NamedTuple):
    """A weight, made once for many calls.

    Attributes:
        data: Lanes, int8 ``[out_features, in_features]``, or 4-bit codes two to a byte as they are
            stored, uint8 ``[out_features, in_features / 2]``.
        scale: Steps, float32 ``[out_features, groups]``; those of a group are contiguous.
        zero: Zero points of the lanes, int8 in the shape and order of ``scale``; None where
            symmetric.
        sums: ``lane_sums`` of the lanes.
        bits: Width of the codes.
        group: Input channels that share a step; 0 for one step for each output channel.
    """

    data: Tensor
    scale: Tensor
    zero: Tensor | None
    sums: Tensor
    bits: int
    group: int


def prepare_weight(
    packed: Tensor, shape: tuple[int, int], scale: Tensor, zero: Tensor | None, *, bits: int,
    group: int,
) -> Weight:  # fmt: skip
    """Make a weight for the kernels from what a ``QuantLinear`` holds.

    4-bit codes stay packed where a row is a whole number of bytes, and are unpacked in the kernel.
    Codes of any other width are unpacked to int8 here, once: a 6-bit code may lie in two bytes, so
    that no load of a power of two of bytes holds whole codes. That costs a third more memory.

    Args:
        packed: uint8, as ``harness.quant.layers.pack.pack`` makes it.
        shape: ``(out_features, in_features)``.
        scale: Steps ``[out_features or 1, groups]``, any float dtype.
        zero: Zero points of the codes, in the shape of ``scale``, or None.
        bits: Width of the codes, 2 to 8.
        group: Input channels that share a step, a multiple of 32, or 0.

    Raises:
        ValueError: The number of bytes or of steps is another one, or the group is no multiple of
            32.
    """
    rows, width = shape
    groups = _groups(width, group)
    if packed.dtype != torch.uint8 or packed.shape != (packed_bytes(rows * width, bits),):
        raise ValueError(
            f"{packed.dtype} {list(packed.shape)} does not hold {rows} x {width} codes"
        )
    if scale.ndim != 2 or scale.shape[1] != groups or scale.shape[0] not in (1, rows):
        raise ValueError(f"steps of shape {list(scale.shape)}, expected [{rows}, {groups}]")
    codes = unpack(packed, bits, shape, signed=zero is None)
    lanes = codes if zero is None else to_lanes(codes, bits)
    keep = bits == 4 and width % 2 == 0
    return Weight(
        data=packed.view(rows, width // 2) if keep else lanes,
        scale=_by_group(scale.float().expand(rows, groups)),
        zero=None if zero is None else _by_group(to_lanes(zero, bits).expand(rows, groups)),
        sums=lane_sums(lanes, group),
        bits=bits,
        group=group,
    )


def to_lanes(codes: Tensor, bits: int) -> Tensor:
    """Lanes of asymmetric codes 0 .. 2^bits - 1, or of their zero points: int8, 2^(bits-1) less."""
    return (codes.to(torch.int16) - (1 << (bits - 1))).to(torch.int8)


def lane_sums(lanes: Tensor, group: int) -> Tensor:
    """Sums of lanes that a zero point on the other side of a product is multiplied by.

    Args:
        lanes: int8 ``[rows, in_features]``.
        group: As of the product; 0 for one sum of a row.

    Returns:
        int32 ``[chunks, rows]``, contiguous; a chunk is ``chunk_of(group)`` channels.
    """
    size = chunk_of(group) if group else lanes.shape[1]
    return lanes.view(len(lanes), -1, size).sum(-1, dtype=torch.int32).t().contiguous()


def _groups(width: int, group: int) -> int:
    if group and (group % 32 or width % group):
        raise ValueError(
            f"groups of {group} channels in {width}, expected a divisor, 32 or more times"
        )
    return width // group if group else 1


def _by_group(value: Tensor) -> Tensor:
    return value.t().contiguous().t()
