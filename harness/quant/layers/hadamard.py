"""Hadamard matrices for the widths of real models.

Powers of two come from Sylvester (``scipy.linalg.hadamard``); the other orders that occur in video
DiTs (1152, 1536, 1920, 3072, 4608, 5120, 7680, 8960, 12288, 13824, 14336, 15360) are a Paley order
times a power of two. Every other width falls back to a block-diagonal matrix, and says so.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import hadamard as sylvester
from torch import Tensor

PALEY_ORDERS = (12, 20, 28, 36, 44, 60, 108, 140)
"""Orders built here by Paley's constructions; Sylvester gives the powers of two."""


class Shape(NamedTuple):
    """How a width is rotated: ``blocks`` times an ``outer`` x ``inner`` Kronecker Hadamard matrix.

    ``outer`` is 1 or a Paley order, ``inner`` a power of two. ``blocks`` > 1 means block-diagonal.
    """

    blocks: int
    outer: int
    inner: int

    @property
    def label(self) -> str:
        """How reports name it: the order, or ``blocks x order`` where it is block-diagonal."""
        order = self.outer * self.inner
        return f"hadamard-{order}" if self.blocks == 1 else f"hadamard-{self.blocks}x{order}"


def hadamard_shape(width: int) -> Shape:
    """Choose the largest Hadamard order for a width."""
    if width < 1:
        raise ValueError(f"width {width} is not positive")
    power = width & -width
    odd = width // power
    if odd == 1:
        return Shape(1, 1, width)
    for order in PALEY_ORDERS:
        if width % order == 0 and _is_power_of_two(width // order):
            return Shape(1, order, width // order)
    return Shape(odd, 1, power)


def _is_power_of_two(n: int) -> bool:
    return n > 0 and n & (n - 1) == 0


@lru_cache(maxsize=32)
def _matrix(order: int) -> Tensor:
    """Hadamard matrix of one order with entries +-1, float64."""
    if _is_power_of_two(order):
        return torch.from_numpy(sylvester(order).astype(np.float64))
    return torch.from_numpy(_paley(order).astype(np.float64))


def _paley(order: int) -> np.ndarray:
    """Paley I for a prime order-1 = 3 mod 4, Paley II for a prime order/2-1 = 1 mod 4."""
    if _is_prime(order - 1) and (order - 1) % 4 == 3:
        q = order - 1
        core = np.zeros((order, order), dtype=np.int64)
        core[0, 1:], core[1:, 0], core[1:, 1:] = 1, -1, _jacobsthal(q)
        return core + np.eye(order, dtype=np.int64)
    q = order // 2 - 1
    if not (_is_prime(q) and q % 4 == 1):
        raise ValueError(f"no Paley construction over a prime field for order {order}")
    core = np.zeros((q + 1, q + 1), dtype=np.int64)
    core[0, 1:], core[1:, 0], core[1:, 1:] = 1, 1, _jacobsthal(q)
    plus, minus = np.array([[1, 1], [1, -1]]), np.array([[1, -1], [-1, -1]])
    return np.kron(core, plus) + np.kron(np.eye(q + 1, dtype=np.int64), minus)


def _jacobsthal(q: int) -> np.ndarray:
    """Quadratic characters chi(i - j) of the field of ``q`` elements."""
    character = np.full(q, -1, dtype=np.int64)
    character[[i * i % q for i in range(1, q)]] = 1
    character[0] = 0
    i = np.arange(q)
    return character[(i[:, None] - i[None, :]) % q]


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))


def factors(width: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Orthonormal outer and inner factor for a width; the rotation is their Kronecker product.

    Returns:
        ``[outer, outer]`` and ``[inner, inner]``; a block-diagonal shape has the identity as outer
        factor.
    """
    shape = hadamard_shape(width)
    inner = _matrix(shape.inner) / shape.inner**0.5
    if shape.blocks > 1:
        return torch.eye(shape.blocks, dtype=dtype), inner.to(dtype)
    return (_matrix(shape.outer) / shape.outer**0.5).to(dtype), inner.to(dtype)


@lru_cache(maxsize=64)
def held_factors(width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """``factors`` in float32 on a device, one copy for all layers of a width.

    At width 2048 a factor of its own would weigh eight times the 4-bit weight that it rotates.
    """
    with torch.inference_mode(False):  # a later call may need a gradient
        outer, inner = factors(width)
        return outer.to(device), inner.to(device)
