"""The low-rank branch of SVDQuant (arXiv 2411.05007): truncated SVD, factors in 16 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from torch import Tensor

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
