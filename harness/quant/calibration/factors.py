"""Tensors that say the same thing many times, stored once and given back to the bit."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

SMALLEST = 1 << 12
"""Bytes from which rows are compared; below, it saves nothing."""

_SHARE = 4
"""Rows that equal their neighbour are stored once where that leaves at most this share, 1/4."""
_CHUNK_BYTES = 1 << 26


def content_digest(value: Tensor, told: bytes = b"") -> str:
    """Digest of a tensor's bits.

    Args:
        value: Any tensor.
        told: What else the digest is over.
    """
    found = hashlib.sha256(told)
    if value.numel():
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def factor(value: Tensor) -> tuple[Tensor, list[dict[str, Any]]]:
    """Cut a tensor down to the rows that differ.

    An expanded dimension (stride 0) keeps one entry. Along the first two dimensions, of which one
    is tokens where a modulation has one row a token, runs of rows that are equal to the bit keep
    one row, equal runs the same one.

    Args:
        value: Any tensor.

    Returns:
        The rest, contiguous, and the steps by which ``expand_factors`` makes the tensor of it.
    """
    steps: list[dict[str, Any]] = []
    for dim, (size, stride) in enumerate(zip(value.shape, value.stride(), strict=True)):
        if size > 1 and stride == 0:
            value = value.narrow(dim, 0, 1)
            steps.append({"expand": dim, "size": size})
    for dim in range(min(2, value.dim() - 1)):
        if value.shape[dim] < _SHARE or value.numel() * value.element_size() < SMALLEST:
            continue
        firsts, rows, lengths = _runs(value, dim)
        if len(firsts) * _SHARE <= value.shape[dim]:
            value = value.index_select(dim, torch.tensor(firsts, device=value.device))
            steps.append({"rows": dim, "of": rows, "lengths": lengths})
    return value.contiguous(), steps[::-1]


def expand_factors(value: Tensor, steps: list[Mapping[str, Any]]) -> Tensor:
    """Undo ``factor``; the result is contiguous."""
    for step in steps:
        if "expand" in step:
            shape = list(value.shape)
            shape[step["expand"]] = step["size"]
            value = value.expand(shape)
        else:
            rows = torch.tensor(step["of"]).repeat_interleave(torch.tensor(step["lengths"]))
            value = value.index_select(step["rows"], rows.to(value.device))
    return value.contiguous()


def _runs(value: Tensor, dim: int) -> tuple[list[int], list[int], list[int]]:
    """Runs of equal rows.

    Returns:
        Index of the first of each of the rows that differ, and of every run its row among those
        and its length.
    """
    rows = value.movedim(dim, 0).flatten(1)
    rows = rows.contiguous().view(torch.uint8)  # as bits: 0.0 is not -0.0, and NaN is itself
    count, width = rows.shape
    chunk = max(1, _CHUNK_BYTES // width)
    changes = [
        (rows[i + 1 : i + 1 + chunk] != rows[i : min(i + chunk, count - 1)]).any(1)
        for i in range(0, count - 1, chunk)
    ]
    starts = [0, *(torch.cat(changes).nonzero().flatten() + 1).tolist()]
    if len(starts) * _SHARE > count:
        return starts, [], []
    firsts: list[int] = []
    of: list[int] = []
    for start in starts:
        same = (k for k, first in enumerate(firsts) if torch.equal(rows[first], rows[start]))
        place = next(same, len(firsts))
        if place == len(firsts):
            firsts.append(start)
        of.append(place)
    return firsts, of, [b - a for a, b in zip(starts, [*starts[1:], count], strict=True)]
