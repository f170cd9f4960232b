"""Quantization of activations.

Dynamic per token, dynamic per token and channel group, static per tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.bits import IDENTITY_WIDTH
from harness.quant.layers.grid import (
    Affine,
    affine,
    code_range,
    encode,
    fake_quantize,
    grouped,
)

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, kw_only=True, slots=True)
class ActivationSpec:
    """How the input of a quantized linear is rounded.

    Attributes:
        bits: Width; 16 leaves the tensor alone.
        symmetric: Grid without zero point.
        group: Channels that share a step within a token; 0 for the whole token.
        clip_low: Factor on the smallest value of the range, dynamic grids only.
        clip_high: Factor on the largest value of the range, dynamic grids only.
        static_low: Smallest value of a static per-tensor range; None makes the grid dynamic.
        static_high: Largest value of a static per-tensor range.
        axis: ``token``, or ``channel`` for a dynamic grid of each channel over the tokens; no
            integer GEMM can apply that one, so it is for simulation only.
    """

    bits: int
    symmetric: bool = True
    group: int = 0
    clip_low: float = 1.0
    clip_high: float = 1.0
    static_low: float | None = None
    static_high: float | None = None
    axis: str = "token"

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            ValueError: The axis is unknown, or a grid of channels is grouped or static.
        """
        if self.axis not in ("token", "channel"):
            raise ValueError(f"activation axis is {self.axis!r}, expected token or channel")
        if self.axis == "channel" and (self.group or self.is_static):
            raise ValueError("a grid of each channel is neither grouped nor static")

    @property
    def is_static(self) -> bool:
        """Whether the range was fixed at calibration."""
        return self.static_low is not None

    @property
    def label(self) -> str:
        """How reports name it."""
        if self.bits == IDENTITY_WIDTH:
            return "16 bit"
        where = "per tensor, static" if self.is_static else f"per {self.axis}"
        return f"{where}{f' x group {self.group}' if self.group else ''}"


def activation_grid(x: Tensor, spec: ActivationSpec) -> Affine:
    """Grid of an activation.

    Args:
        x: ``[..., tokens, in_features]``; with groups, ``[..., tokens, groups, group]``.
        spec: How it is rounded; its width is below 16.

    Returns:
        Step and zero point that broadcast over ``x``.
    """
    if spec.static_low is not None and spec.static_high is not None:
        low = torch.as_tensor(spec.static_low, dtype=x.dtype, device=x.device)
        high = torch.as_tensor(spec.static_high, dtype=x.dtype, device=x.device)
        return affine(low, high, spec.bits, symmetric=spec.symmetric)
    over = -1 if spec.axis == "token" else -2
    if spec.symmetric and spec.clip_low == spec.clip_high:
        high = x.abs().amax(over, keepdim=True) * spec.clip_high
        return affine(-high, high, spec.bits, symmetric=True)
    low = x.amin(over, keepdim=True) * spec.clip_low
    high = x.amax(over, keepdim=True) * spec.clip_high
    return affine(low, high, spec.bits, symmetric=spec.symmetric)


def quantize_activation(x: Tensor, spec: ActivationSpec) -> Tensor:
    """Round an activation to its grid and come back; the identity at width 16."""
    if spec.bits == IDENTITY_WIDTH:
        return x
    # at least single precision: in bfloat16 the step and the zero point themselves would be off
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    rows = grouped(wide, spec.group) if spec.group else wide
    return fake_quantize(rows, activation_grid(rows, spec), spec.bits).reshape(x.shape).to(x.dtype)


def round_activation(x: Tensor, spec: ActivationSpec, *, inplace: bool = False) -> Tensor:
    """``quantize_activation`` without gradient and with one copy: the same bits, chunk by chunk.

    Every token has a grid of its own, a static range is one number, and the range of a channel is
    found over all tokens first, so that chunks of tokens are exact.

    Args:
        x: ``[..., tokens, in_features]``.
        spec: How it is rounded.
        inplace: Allow that ``x`` is overwritten.
    """
    if spec.bits == IDENTITY_WIDTH:
        return x
    with torch.no_grad():
        fixed = _channel_grid(x, spec) if spec.axis == "channel" else None

        def rounded(part: Tensor) -> Tensor:
            wide = part.to(torch.promote_types(x.dtype, torch.float32))
            rows = grouped(wide, spec.group) if spec.group else wide
            grid = activation_grid(rows, spec) if fixed is None else fixed
            codes = rows / grid.scale if wide is part else rows.div_(grid.scale)
            codes.round_()
            if grid.zero is not None:
                codes.add_(grid.zero)
            codes.clamp_(*code_range(spec.bits, grid.zero is None))
            if grid.zero is not None:
                codes.sub_(grid.zero)
            return codes.mul_(grid.scale).reshape(part.shape)

        return in_chunks(x, rounded, flat=fixed is None, inplace=inplace)


def _channel_grid(x: Tensor, spec: ActivationSpec) -> Affine:
    """Grid of each channel over the tokens: smallest and largest need no wider copy of ``x``."""
    wide = torch.promote_types(x.dtype, torch.float32)
    low, high = (f(x, -2, keepdim=True).to(wide) for f in (torch.amin, torch.amax))
    if spec.symmetric and spec.clip_low == spec.clip_high:
        high = torch.maximum(-low, high) * spec.clip_high
        return affine(-high, high, spec.bits, symmetric=True)
    return affine(low * spec.clip_low, high * spec.clip_high, spec.bits, symmetric=spec.symmetric)


_CPU_CHUNK = 1 << 20
_SHARE, _MOST = 16, 1 << 24
"""Values in work at a time: on a processor what its caches hold; elsewhere a share of the tensor,
so that the work beside it stays below its size, and no more than fills the device."""


def work_values(values: int, device: str) -> int:
    """How many values of so many are in work at a time on a kind of device."""
    if device == "cpu":
        return min(values, _CPU_CHUNK)
    return min(values, max(_CPU_CHUNK, values // _SHARE), _MOST)


def in_chunks(
    x: Tensor, work: Callable[[Tensor], Tensor], *, flat: bool = True, inplace: bool = False
) -> Tensor:
    """Apply a function of tokens to some tokens at a time.

    Args:
        x: ``[..., tokens, features]``.
        work: Maps ``[..., some tokens, features]`` to the same shape, each token by itself.
        flat: Whether the leading dimensions are tokens to it as well.
        inplace: Allow that ``x`` is overwritten.

    Returns:
        Shape and dtype of ``x``.
    """
    chunk = work_values(x.numel(), x.device.type)
    if x.numel() <= chunk or x.ndim < 2:
        return work(x).to(x.dtype)
    out = x if inplace else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    source, target = x, out
    if flat and x.is_contiguous():
        source, target = x.view(1, -1, x.shape[-1]), out.view(1, -1, x.shape[-1])
    tokens = source.shape[-2]
    step = max(1, chunk * tokens // x.numel())
    for start in range(0, tokens, step):
        count = min(step, tokens - start)
        target.narrow(-2, start, count).copy_(work(source.narrow(-2, start, count)))
    return out


def activation_codes(x: Tensor, spec: ActivationSpec) -> Tensor:
    """Integer codes of an activation, for verification and kernels; shape of ``x``."""
    rows = grouped(x, spec.group) if spec.group else x
    return encode(rows, activation_grid(rows, spec), spec.bits).reshape(x.shape)
