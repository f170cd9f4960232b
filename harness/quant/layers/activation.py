"""Quantization of activations.

Dynamic per token, dynamic per token and channel group, static per tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.bits import IDENTITY_WIDTH
from harness.quant.layers.grid import Affine, affine, encode, fake_quantize, grouped


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


def activation_codes(x: Tensor, spec: ActivationSpec) -> Tensor:
    """Integer codes of an activation, for verification and kernels; shape of ``x``."""
    rows = grouped(x, spec.group) if spec.group else x
    return encode(rows, activation_grid(rows, spec), spec.bits).reshape(x.shape)
