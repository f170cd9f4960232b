"""Learned transforms and clipping thresholds: the trainable form of a quantized linear.

FlatQuant's parametrisation (arXiv 2410.09426) as S2Q-VDiT uses it (arXiv 2508.04016, App. A): a
channel scale, an invertible Kronecker map P = U diag(d) V^T with Cayley-orthogonal U and V, and
sigmoid clipping factors on the range of weights and activations. After training everything becomes
data of a ``QuantLinear``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.bits import IDENTITY_WIDTH
from harness.quant.layers import hadamard
from harness.quant.layers.grid import affine, fake_quantize, weight_grid
from harness.quant.layers.transform import Kronecker, kronecker_sizes
from harness.quant.learning.recompute import recomputed

if TYPE_CHECKING:
    from collections.abc import Iterator

CLIP_LOGIT = 4.0  # sigmoid(4.0) = 0.982, FlatQuant's initial clipping factor


class _Factor(NamedTuple):
    """One Kronecker factor and the inverse transpose that the weight needs."""

    forward: Tensor
    inverse_transpose: Tensor


class _InvertibleMatrix(nn.Module):
    """P = U diag(exp(d)) V^T; starts as ``start`` (orthonormal) with d = 0."""

    start: Tensor

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        size = start.shape[0]
        self.register_buffer("start", start)
        self.free = nn.Parameter(torch.zeros(2, size, size))  # of U and of V
        self.log_diagonal = nn.Parameter(torch.zeros(size))

    def factor(self) -> _Factor:
        left, v = _cayley(self.free)
        u = self.start @ left
        gain = self.log_diagonal.exp()
        return _Factor((u * gain) @ v.T, (u / gain) @ v.T)


def _cayley(free: Tensor) -> Tensor:
    """Orthogonal matrices of free square matrices ``[..., n, n]``; zero gives the identity."""
    skew = free - free.transpose(-1, -2)
    eye = torch.eye(free.shape[-1], dtype=free.dtype, device=free.device)
    return torch.linalg.solve(eye + skew, eye - skew)


def _rotation(size: int, kind: str, generator: torch.Generator) -> Tensor:
    """Initial orthonormal factor: random-sign Hadamard, random orthogonal, or the identity.

    A size without a Hadamard matrix of its full order starts at a random orthogonal one.
    """
    if kind == "identity":
        return torch.eye(size)
    if kind == "random" or hadamard.hadamard_shape(size).blocks > 1:
        gaussian = torch.randn(size, size, generator=generator, dtype=torch.float64)
        q, r = torch.linalg.qr(gaussian)
        return (q * torch.diagonal(r).sign()).float()
    if kind != "hadamard":
        raise ValueError(f"unknown initial rotation {kind!r}")
    outer, inner = hadamard.factors(size)
    signs = torch.randint(0, 2, (size,), generator=generator) * 2.0 - 1
    return signs[:, None] * torch.kron(outer, inner)


class LearnedInput(nn.Module):
    """Shared input of a group of linears: scale, Kronecker map, activation clipping.

    Args:
        width: Channels.
        a_bits: Activation width; 16 leaves the activation alone.
        scale: Initial channel scale ``[width]``, None for no scale.
        rotation: ``hadamard``, ``random``, ``identity`` (start of the Kronecker map) or ``none``
            (no map).
        clip: Whether clipping factors are learned.
        generator: Randomness of the initial rotation.
        readers: Linears that read one and the same tensor: the work is kept until the last has it.
    """

    def __init__(
        self,
        width: int,
        a_bits: int,
        *,
        scale: Tensor | None,
        rotation: str,
        clip: bool,
        generator: torch.Generator,
        readers: int = 1,
    ) -> None:
        super().__init__()
        self.a_bits, self.readers = a_bits, readers
        self.log_scale = None if scale is None else nn.Parameter(scale.float().log())
        self.outer = self.inner = None
        if rotation != "none":
            a, b = kronecker_sizes(width)
            self.outer = _InvertibleMatrix(_rotation(a, rotation, generator))
            self.inner = _InvertibleMatrix(_rotation(b, rotation, generator))
        learns_clip = clip and a_bits < IDENTITY_WIDTH
        self.clip = nn.Parameter(torch.full((2,), CLIP_LOGIT)) if learns_clip else None
        self._factors: tuple[_Factor, _Factor] | None = None
        self._seen: tuple[Tensor, Tensor, int] | None = None

    def begin_step(self) -> None:
        """Compute the maps for the optimiser step that begins."""
        self.end_step()
        self._factors = self._maps()

    def end_step(self) -> None:
        """Forget what belongs to the last optimiser step."""
        self._factors = self._seen = None

    def _maps(self) -> tuple[_Factor, _Factor] | None:
        if self.outer is None or self.inner is None:
            return None
        return self._factors or (self.outer.factor(), self.inner.factor())

    def activation(self, x: Tensor) -> Tensor:
        """Transform and round an input; linears that share the tensor share the work."""
        if self._seen is not None and self._seen[0] is x:
            _, out, left = self._seen
        else:
            out, left = self._activation(x), self.readers
        # not kept beyond its last reader: it would be alive until the end of the step
        self._seen = (x, out, left - 1) if left > 1 else None
        return out

    def _activation(self, x: Tensor) -> Tensor:
        maps = self._maps()
        if maps is None and self.log_scale is None and self.a_bits == IDENTITY_WIDTH:
            return x
        outer, inner = (None, None) if maps is None else (m.forward for m in maps)
        return recomputed(self._compute, x, self.log_scale, outer, inner, self.clip)

    def _compute(
        self,
        x: Tensor,
        log_scale: Tensor | None,
        outer: Tensor | None,
        inner: Tensor | None,
        clip: Tensor | None,
    ) -> Tensor:
        """Transform and round rows, of nothing but the arguments."""
        # at least single precision, as the quantized layer has it
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return self._round(_transform(wide, log_scale, outer, inner), clip).to(x.dtype)

    def transform(self, x: Tensor) -> Tensor:
        """Map the channels."""
        maps = self._maps()
        outer, inner = (None, None) if maps is None else (m.forward for m in maps)
        return _transform(x, self.log_scale, outer, inner)

    def weight_maps(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Logarithm of the scale and both inverse transposes, by which a weight is mapped."""
        maps = self._maps()
        if maps is None:
            return self.log_scale, None, None
        return self.log_scale, maps[0].inverse_transpose, maps[1].inverse_transpose

    def _round(self, x: Tensor, clip: Tensor | None) -> Tensor:
        if self.a_bits == IDENTITY_WIDTH:
            return x
        high, low = x.max(-1, keepdim=True).values, x.min(-1, keepdim=True).values
        if clip is not None:
            factors = clip.sigmoid()
            low, high = low * factors[0], high * factors[1]
        return fake_quantize(x, affine(low, high, self.a_bits, symmetric=True), self.a_bits)

    def clip_factors(self) -> tuple[float, float]:
        """Learned factors on the minimum and the maximum."""
        if self.clip is None:
            return 1.0, 1.0
        low, high = self.clip.detach().sigmoid().tolist()
        return low, high

    def scale(self) -> Tensor | None:
        """Learned channel scale ``[width]``."""
        return None if self.log_scale is None else self.log_scale.detach().exp()

    def kronecker(self) -> Kronecker | None:
        """Learned map as stored: factors rounded to half precision, the inverse taken of those."""
        maps = self._maps()
        if maps is None:
            return None
        outer, inner = (m.forward.detach().half().float() for m in maps)
        return Kronecker(outer, inner)


def _transform(
    x: Tensor, log_scale: Tensor | None, outer: Tensor | None, inner: Tensor | None
) -> Tensor:
    if log_scale is not None:
        x = x * (-log_scale).exp()
    return x if outer is None or inner is None else _kron(x, outer, inner)


def _kron(x: Tensor, outer: Tensor, inner: Tensor) -> Tensor:
    grid = x.reshape(*x.shape[:-1], outer.shape[0], inner.shape[0])
    return (outer.T @ (grid @ inner)).reshape(x.shape)


class LearnedLinear(nn.Module):
    """A linear whose weight is rounded with learned clipping in the basis of a ``LearnedInput``.

    Args:
        linear: The full-precision layer; its parameters are read, in single precision or wider,
            and stay where they are.
        shared: The group's input.
        w_bits: Weight width; 16 leaves the weight alone.
        clip: Whether clipping factors are learned.
        dtype: Of the product; None takes the weight's, at least single precision. Mapping and
            rounding are in single precision whatever it is.
    """

    def __init__(
        self,
        linear: nn.Linear,
        shared: LearnedInput,
        w_bits: int,
        *,
        clip: bool,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        wide = torch.promote_types(linear.weight.dtype, torch.float32)
        self.weight = linear.weight.detach().to(wide)
        self.bias = None if linear.bias is None else linear.bias.detach().to(dtype or wide)
        self.shared = shared
        self.w_bits, self.dtype = w_bits, dtype or wide
        learns_clip = clip and w_bits < IDENTITY_WIDTH
        logits = torch.full((2, linear.out_features, 1), CLIP_LOGIT)
        self.clip = nn.Parameter(logits) if learns_clip else None
        self._rounded: Tensor | None = None

    def begin_step(self) -> None:
        """Round the weight for the optimiser step that begins, that of the input being under way.

        Once a step: within it the block's parts are computed again, and in stretches.
        """
        self.end_step()
        self._rounded = self.rounded()

    def end_step(self) -> None:
        """Forget what belongs to the last optimiser step."""
        self._rounded = None

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer on rounded values; ``[..., in]`` to ``[..., out]``, differentiable."""
        weight = self.rounded() if self._rounded is None else self._rounded
        return functional.linear(self.shared.activation(x).to(self.dtype), weight, self.bias)

    def rounded(self) -> Tensor:
        """The mapped weight on its grid, ``[out, in]``, differentiable."""
        weight = recomputed(
            self._compute, self.weight, *self.shared.weight_maps(), self.clip, by_row=False
        )
        return weight.to(self.dtype)

    def _compute(
        self,
        weight: Tensor,
        log_scale: Tensor | None,
        outer: Tensor | None,
        inner: Tensor | None,
        clip: Tensor | None,
    ) -> Tensor:
        """Map and round the weight, of nothing but the arguments."""
        if log_scale is not None:
            weight = weight * log_scale.exp()
        if outer is not None and inner is not None:
            weight = _kron(weight, outer, inner)
        if self.w_bits == IDENTITY_WIDTH:
            return weight
        low, high = (1.0, 1.0) if clip is None else clip.sigmoid()
        grid = weight_grid(weight, self.w_bits, clip=high, clip_low=low)
        return fake_quantize(weight, grid, self.w_bits)

    def clip_factors(self) -> tuple[Tensor | float, Tensor | float]:
        """Factors on the row minimum and maximum, ``[out_features, 1]`` or 1."""
        if self.clip is None:
            return 1.0, 1.0
        low, high = self.clip.sigmoid()
        return low, high


def transform_parameters(block: nn.Module) -> Iterator[nn.Parameter]:
    """Scales and rotations of a learned block."""
    for module in block.modules():
        if isinstance(module, _InvertibleMatrix):
            yield from module.parameters()
        elif isinstance(module, LearnedInput) and module.log_scale is not None:
            yield module.log_scale


def clip_parameters(block: nn.Module) -> Iterator[nn.Parameter]:
    """Clipping logits of a learned block."""
    for module in block.modules():
        if isinstance(module, LearnedInput | LearnedLinear) and module.clip is not None:
            yield module.clip
