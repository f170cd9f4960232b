"""Weights of the x86 kernel in tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from harness.kernels.x86.rows import SIDE, TILE

if TYPE_CHECKING:
    from harness.quant.layers.linear import QuantLinear

_HALF = 8
_LANE_OFFSET = 128
_AT_ONCE = 1 << 24
"""Codes laid out at a time."""


class TiledWeight(NamedTuple):
    """A weight; ``w = (lanes - zeros) * steps``. Columns are output channels, padded to 32.

    Attributes:
        lanes: uint8 ``[blocks, segments, tiles, 2, 16, 16, 4]`` of signed lanes, or without the 2
            of 4-bit codes, two to a byte (lanes.h).
        shifts: int8 ``[segments, columns]``, taken off 4-bit codes; None at more bits.
        steps: float32 ``[segments, columns]``.
        sums: int32 ``[segments, columns]``, of the lanes, zero points taken off.
        zeros: int32 ``[segments, columns]``, None where all are 0.
    """

    lanes: Tensor
    shifts: Tensor | None
    steps: Tensor
    sums: Tensor
    zeros: Tensor | None


def tiled_weight(layer: QuantLinear, segment: int) -> TiledWeight:
    """Lay a weight out.

    Zero points are taken off the codes where the difference fits a lane, which is below 8 bits.

    Args:
        layer: With a rounded weight.
        segment: Input channels that share a step; divides the groups.
    """
    grid, bits = layer.grid, layer.weight_spec.bits
    assert grid is not None
    rows, width = layer.out_features, layer.in_features
    segments, tiles, blocks = width // segment, -(-segment // TILE), -(-rows // SIDE)
    columns, four = blocks * SIDE, bits <= 4

    def by_segment(value: Tensor) -> Tensor:
        """``[out, groups]`` to ``[segments, columns]``."""
        whole = value.expand(rows, -1).repeat_interleave(segments // value.shape[1], 1)
        return functional.pad(whole.t(), (0, columns - rows)).contiguous()

    steps = by_segment(grid.scale)
    point = torch.zeros_like(steps) if grid.zero is None else by_segment(grid.zero)
    shifts = zeros = None
    if four:
        shifts = (point if grid.zero is not None else torch.full_like(steps, _HALF)).to(torch.int8)
    elif bits == 8 and grid.zero is not None:
        zeros = (point - _LANE_OFFSET).to(torch.int32)
    shape = (blocks, segments, tiles, *(() if four else (2,)), 16, 16, 4)
    lanes = torch.empty(shape, dtype=torch.uint8)
    sums = torch.empty(segments, columns, dtype=torch.int32)
    codes = layer.codes
    step = max(1, _AT_ONCE // (SIDE * width))
    for start in range(0, blocks, step):
        part = slice(start * SIDE, min(rows, (start + step) * SIDE))
        at = slice(start * SIDE, min(blocks, start + step) * SIDE)
        held = codes[part].to(torch.int16).view(-1, segments, segment)
        centred = held - point.t()[part, :, None].to(torch.int16)
        sums[:, at] = functional.pad(
            centred.sum(2, dtype=torch.int32).t(), (0, at.stop - at.start - len(held))
        )
        if four:
            held = held + (_HALF if grid.zero is None else 0)
            fill = shifts.t()[at, :, None].to(torch.int16)  # type: ignore[union-attr]
        else:
            held = held - _LANE_OFFSET if zeros is not None else centred
            fill = torch.zeros(at.stop - at.start, segments, 1, dtype=torch.int16)
        lanes[start : start + step] = _tiles(held, fill, tiles, four=four)
    return TiledWeight(lanes, shifts, steps, sums, zeros)


def _tiles(held: Tensor, fill: Tensor, tiles: int, *, four: bool) -> Tensor:
    """Codes ``[out, segments, segment]`` in tiles, filled up by ``[columns, segments, 1]``."""
    columns, segments = fill.shape[:2]
    whole = fill.expand(-1, -1, tiles * TILE).clone()
    whole[: len(held), :, : held.shape[2]] = held
    apart = whole.view(columns // SIDE, 2, 16, segments, tiles, 16, 4)
    tiled = apart.permute(0, 3, 4, 1, 5, 2, 6)
    if four:
        return (tiled[:, :, :, 0] | (tiled[:, :, :, 1] << 4)).to(torch.uint8)
    return tiled.to(torch.int8).view(torch.uint8)
