"""Packed weights become matrices for one product, and a bounded number of bytes of them stays.

A layer that computes expands its codes, multiplies, and lets the matrix go. A model so small that
its matrices fit the budget of the process keeps them, because there the expansion would cost more
than the product; a model at real size keeps the first few and is otherwise as small as its codes.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from harness.errors import UsageError
from harness.quant.layers.pack import packed_bytes, unpack

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from harness.quant.layers.grid import Affine

SETTING = "HARNESS_EXPANDED_MB"
"""Environment variable with the budget in MiB; 0 keeps nothing."""

DEFAULT_MB = 32
CHUNK = 1 << 20
"""Weights expanded at a time: what lies beside the matrix is a few bytes for each of them."""


class ExpandedWeights:
    """The expanded weights that layers of this process keep between calls.

    Whoever asks first keeps its matrix until it is gone, is moved, or needs another dtype. Nothing
    is pushed out: layers run in turn, so the least recently used one is the next to be needed.

    Args:
        limit: Bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._kept: WeakKeyDictionary[nn.Module, Tensor] = WeakKeyDictionary()

    def get(self, layer: nn.Module, dtype: torch.dtype, make: Callable[[], Tensor]) -> Tensor:
        """The matrix of a layer, kept or made."""
        found = self._kept.get(layer)
        if found is not None and found.dtype == dtype:
            return found
        self.drop(layer)
        made = make()
        if made.nbytes <= self.limit - self.used():
            self._kept[layer] = made
        return made

    def drop(self, layer: nn.Module) -> None:
        """Forget the matrix of a layer."""
        self._kept.pop(layer, None)

    def used(self, layer: nn.Module | None = None) -> int:
        """Bytes that are kept, of one layer or of all."""
        if layer is not None:
            found = self._kept.get(layer)
            return 0 if found is None else found.nbytes
        return sum(matrix.nbytes for matrix in self._kept.values())


def _limit() -> int:
    text = os.environ.get(SETTING, "").strip() or str(DEFAULT_MB)
    if not text.isdigit():
        raise UsageError(f"{SETTING} is {text!r}", "give a whole number of MiB, 0 to keep nothing")
    return int(text) << 20


EXPANDED = ExpandedWeights(_limit())
"""The one of this process."""


def expand_codes(
    packed: Tensor, bits: int, shape: tuple[int, int], grid: Affine, *, group: int,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """The weight on its grid, computed in float32 some rows at a time.

    Args:
        packed: Packed codes.
        bits: Their width.
        shape: ``(out_features, in_features)``.
        grid: Step and zero point ``[out_features, groups]``, of any float dtype.
        group: Input channels that share a step; 0 for one step for each output channel.
        dtype: Of the result.

    Returns:
        ``[out_features, in_features]``.
    """
    rows, width = shape
    out = torch.empty(shape, dtype=dtype, device=packed.device)
    # eight rows are a whole number of bytes at every width
    step = max(8, CHUNK // width // 8 * 8)
    for start in range(0, rows, step):
        stop = min(rows, start + step)
        begin, end = start * width * bits // 8, packed_bytes(stop * width, bits)
        codes = unpack(
            packed[begin:end], bits, (stop - start, width), signed=grid.zero is None
        ).float()
        parts = codes.view(stop - start, -1, group) if group else codes
        if grid.zero is not None:
            parts.sub_(_rows(grid.zero, start, stop, group))
        out[start:stop] = parts.mul_(_rows(grid.scale, start, stop, group)).view_as(codes)
    return out


def _rows(value: Tensor, start: int, stop: int, group: int) -> Tensor:
    """Rows of a grid in single precision, so that they broadcast over the codes."""
    own = (value if len(value) == 1 else value[start:stop]).float()
    return own.unsqueeze(-1) if group else own
