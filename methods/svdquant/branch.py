"""The low-rank branch of SVDQuant (arXiv 2411.05007): truncated SVD, factors in 16 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from torch import Tensor

EXACT_SIDE = 512
"""Smaller side of a matrix up to which its SVD is taken from all eigenvectors."""

OVERSAMPLING = 32
"""Directions beside those that are kept: what lies next to them then no longer mixes in."""

COLD_ROUNDS, WARM_ROUNDS = 6, 2
"""Rounds of subspace iteration from a random start, and from the directions of the last matrix."""

LEAST_SHARE = 4
"""A branch has at most this fraction of the rank that the weight could have."""


class Factors(NamedTuple):
    """A branch: ``up`` ``[out, rank]`` times ``down`` ``[rank, in]``, as the artifact holds it."""

    up: Tensor
    down: Tensor

    @property
    def product(self) -> Tensor:
        """``[out, in]``."""
        return self.up @ self.down


class LeadingDirections:
    """Truncated SVDs of matrices that resemble one another, each started where the last one ended.

    Up to a side of ``EXACT_SIDE`` from the eigenvectors of the smaller Gram matrix in double
    precision. Beyond, that decomposition takes most of a minute at a width of 3072, for each of
    some forty matrices an input; a few rounds of subspace iteration (Halko, Martinsson and Tropp,
    arXiv 0909.4061, algorithm 4.4) with oversampling find the same directions. What the search
    varies, the scale of the input channels, turns the left subspace little: that is handed on.
    """

    def __init__(self) -> None:
        self._left: Tensor | None = None

    def truncated_svd(self, matrix: Tensor, rank: int) -> Factors:
        """Best approximation of a matrix by one of a rank, its factors in half precision.

        Args:
            matrix: ``[out, in]``; ``out`` is the same at every call.
            rank: At most the smaller side.
        """
        if min(matrix.shape) <= EXACT_SIDE:
            return truncated_svd(matrix, rank)
        warm = self._left is not None
        left = self._start(matrix, rank) if self._left is None else self._left
        for _ in range(WARM_ROUNDS if warm else COLD_ROUNDS):
            right = torch.linalg.qr(matrix.T @ left).Q
            left, triangle = torch.linalg.qr(matrix @ right)
        # matrix @ right = left @ triangle: the small matrix has the singular values
        u, values, vh = torch.linalg.svd(triangle)
        self._left = left @ u
        root = values[:rank].sqrt()
        return Factors(
            _half(self._left[:, :rank] * root), _half(root[:, None] * (vh[:rank] @ right.T))
        )

    def _start(self, matrix: Tensor, rank: int) -> Tensor:
        """A random subspace, the same for every matrix of a shape."""
        columns = min(rank + OVERSAMPLING, *matrix.shape)
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn(matrix.shape[1], columns, generator=generator)
        return torch.linalg.qr(matrix @ drawn.to(matrix)).Q


def truncated_svd(matrix: Tensor, rank: int) -> Factors:
    """Best approximation of a matrix by one of a rank, its factors in half precision.

    From the eigenvectors of the smaller Gram matrix in double precision: the leading directions
    are all that is wanted.

    Args:
        matrix: ``[out, in]``.
        rank: At most the smaller side.
    """
    wide = matrix.double()
    tall = wide.shape[0] > wide.shape[1]
    gram = wide.T @ wide if tall else wide @ wide.T
    values, vectors = torch.linalg.eigh(gram)
    leading = vectors[:, -rank:].flip(1)
    # the singular values shared evenly: both factors then lie well inside half precision
    root = values[-rank:].flip(0).clamp_min(0).sqrt().sqrt()
    inverse = torch.where(root > 0, 1 / root, 0.0)
    if tall:
        up, down = wide @ leading * inverse, (leading * root).T
    else:
        up, down = leading * root, (leading * inverse).T @ wide
    return Factors(_half(up), _half(down))


def _half(value: Tensor) -> Tensor:
    """Round to a 16-bit format that holds the values, back in single precision."""
    fits = bool(value.abs().amax() <= torch.finfo(torch.float16).max)
    return value.to(torch.float16 if fits else torch.bfloat16).float()


def fitting_rank(in_features: int, out_features: int, rank: int) -> int:
    """Rank asked for, at most a quarter of what the weight could have: miniatures are narrow."""
    return min(rank, max(1, min(in_features, out_features) // LEAST_SHARE))
