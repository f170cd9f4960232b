"""Input transforms: invertible maps of the channels, undone exactly on the weight side.

A transform T turns ``x W^T`` into ``(x T) (W T^-T)^T``. It is data (tensors plus a kind), so the
artifact can store it and the loader can rebuild it without the method that chose it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from harness.quant.layers import hadamard

if TYPE_CHECKING:
    from collections.abc import Mapping


class Transform(Protocol):
    """One invertible map of the input channels."""

    kind: str

    def __call__(self, x: Tensor) -> Tensor:
        """Map activations ``[..., in_features]``."""

    def weight(self, weight: Tensor) -> Tensor:
        """Map a weight ``[out_features, in_features]`` by the inverse transpose."""

    def tensors(self) -> dict[str, Tensor]:
        """What must be stored."""

    @property
    def label(self) -> str:
        """How reports name it."""


class ChannelScale(nn.Module):
    """Division of every channel by its own positive factor, multiplied into the weight.

    Args:
        scale: ``[in_features]``.
    """

    kind = "scale"
    scale: Tensor

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale.detach().float().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Divide the channels of activations ``[..., in_features]``."""
        return (x / self.scale).to(x.dtype)

    def weight(self, weight: Tensor) -> Tensor:
        """Multiply the columns of a weight ``[out_features, in_features]``."""
        return (weight * self.scale).to(weight.dtype)

    def tensors(self) -> dict[str, Tensor]:
        """The factors."""
        return {"scale": self.scale}

    @property
    def label(self) -> str:
        """Always ``scale``."""
        return "scale"


class Hadamard(nn.Module):
    """Random signs, then a Hadamard rotation (QuaRot, arXiv 2404.00456; QuIP# for the signs).

    Args:
        signs: ``[in_features]`` of +-1.
    """

    kind = "hadamard"
    signs: Tensor

    def __init__(self, signs: Tensor) -> None:
        super().__init__()
        self.register_buffer("signs", signs.to(torch.int8).clone())

    @classmethod
    def random(cls, width: int, generator: torch.Generator) -> Hadamard:
        """Draw the signs."""
        return cls(torch.randint(0, 2, (width,), generator=generator) * 2 - 1)

    def forward(self, x: Tensor) -> Tensor:
        """Rotate activations ``[..., in_features]``."""
        return _kronecker(
            x * self.signs.to(x.dtype), *hadamard.held_factors(self.signs.numel(), x.device)
        )

    def weight(self, weight: Tensor) -> Tensor:
        """Rotate a weight likewise: an orthogonal map is its own inverse transpose."""
        return self.forward(weight)

    def tensors(self) -> dict[str, Tensor]:
        """The signs; the matrix follows from the width."""
        return {"signs": self.signs}

    @property
    def label(self) -> str:
        """Kind and order, ``hadamard-128``."""
        return hadamard.hadamard_shape(self.signs.numel()).label


class Kronecker(nn.Module):
    """Rotation-like map by two small invertible factors, ``x (P1 (x) P2)``.

    FlatQuant (arXiv 2410.09426); S2Q-VDiT (arXiv 2508.04016), App. A.

    Args:
        outer: P1 ``[a, a]``.
        inner: P2 ``[b, b]``; a b = in_features.
    """

    kind = "kronecker"
    outer: Tensor
    inner: Tensor

    def __init__(self, outer: Tensor, inner: Tensor) -> None:
        super().__init__()
        self.register_buffer("outer", outer.detach().float().clone())
        self.register_buffer("inner", inner.detach().float().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Map activations ``[..., in_features]``."""
        return _kronecker(x, self.outer, self.inner)

    def weight(self, weight: Tensor) -> Tensor:
        """Map a weight by the factors' inverse transposes, in double precision."""
        outer = torch.linalg.inv(self.outer.double()).T
        inner = torch.linalg.inv(self.inner.double()).T
        return _kronecker(weight.double(), outer, inner).to(weight.dtype)

    def tensors(self) -> dict[str, Tensor]:
        """Both factors."""
        return {"outer": self.outer, "inner": self.inner}

    @property
    def label(self) -> str:
        """Kind and sizes, ``kronecker-8x16``."""
        return f"kronecker-{self.outer.shape[0]}x{self.inner.shape[0]}"


def _kronecker(x: Tensor, outer: Tensor, inner: Tensor) -> Tensor:
    """``x (outer (x) inner)`` on the last dimension, without forming the product.

    Computed in the wider of both precisions: the weight was mapped by the inverse of the factors as
    they are stored, so rounding them to bfloat16 here would no longer cancel.
    """
    a, b = outer.shape[0], inner.shape[0]
    wide = torch.promote_types(x.dtype, outer.dtype)
    grid = x.to(wide).reshape(*x.shape[:-1], a, b)
    if b > 1:
        grid = grid @ inner.to(device=x.device, dtype=wide)
    if a > 1:
        grid = outer.T.to(device=x.device, dtype=wide) @ grid
    return grid.reshape(x.shape).to(x.dtype)


def kronecker_sizes(width: int) -> tuple[int, int]:
    """The two factors of a width that lie closest together, the smaller first (FlatQuant)."""
    a = next(n for n in range(int(width**0.5), 0, -1) if width % n == 0)
    return a, width // a


_KINDS: dict[str, type[nn.Module]] = {cls.kind: cls for cls in (ChannelScale, Hadamard, Kronecker)}


def build(kind: str, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Rebuild a stored transform.

    Raises:
        ValueError: The kind is not one this version knows.
    """
    if kind not in _KINDS:
        raise ValueError(f"unknown transform kind {kind!r}; known: {sorted(_KINDS)}")
    return _KINDS[kind](**tensors)
