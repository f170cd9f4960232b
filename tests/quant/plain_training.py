"""The trainable block written the plain way: every intermediate result is kept by autograd."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.quant.layers.layers import replace_module_

if TYPE_CHECKING:
    from harness.quant.learning.learned import LearnedInput, LearnedLinear
    from harness.quant.learning.learned_blocks import LearnedBlock


class _Round(torch.autograd.Function):
    """Symmetric rounding that keeps codes and residual."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, bits: int) -> Tensor:
        ratio = x / scale
        codes = ratio.round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        ctx.save_for_backward(codes, codes - ratio, scale)
        return codes * scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        codes, residual, scale = ctx.saved_tensors
        inside = residual.abs() <= 0.5
        slope = torch.where(inside, residual, codes)
        return grads[0] * inside, (grads[0] * slope).sum_to_size(scale.shape), None


def _rounded(x: Tensor, clip: Tensor | None, bits: int) -> Tensor:
    if bits == 16:
        return x
    low, high = x.min(-1, keepdim=True).values, x.max(-1, keepdim=True).values
    if clip is not None:
        factors = clip.sigmoid()
        low, high = low * factors[0], high * factors[1]
    scale = torch.maximum(low.abs(), high.abs()) / (2 ** (bits - 1) - 1)
    result: Tensor = _Round.apply(x, scale.clamp_min(1e-8), bits)
    return result


def _mapped(x: Tensor, outer: Tensor, inner: Tensor) -> Tensor:
    grid = x.reshape(*x.shape[:-1], outer.shape[0], inner.shape[0])
    return (outer.T @ (grid @ inner)).reshape(x.shape)


class _PlainInput:
    def __init__(self, shared: LearnedInput) -> None:
        self.shared = shared
        self.seen: tuple[Tensor, Tensor] | None = None
        self.factors: Any = None

    def maps(self) -> Any:
        if self.factors is None and self.shared.outer is not None:
            assert self.shared.inner is not None
            self.factors = (self.shared.outer.factor(), self.shared.inner.factor())
        return self.factors

    def activation(self, x: Tensor) -> Tensor:
        if self.seen is None or self.seen[0] is not x:
            y = x if self.shared.log_scale is None else x * (-self.shared.log_scale).exp()
            if self.maps() is not None:
                y = _mapped(y, self.maps()[0].forward, self.maps()[1].forward)
            self.seen = (x, _rounded(y, self.shared.clip, self.shared.a_bits))
        return self.seen[1]


class _PlainLinear(nn.Module):
    def __init__(self, learned: LearnedLinear, plain: _PlainInput) -> None:
        super().__init__()
        self.learned, self.plain = [learned], plain

    def forward(self, x: Tensor) -> Tensor:
        learned = self.learned[0]
        weight = learned.weight
        if self.plain.shared.log_scale is not None:
            weight = weight * self.plain.shared.log_scale.exp()
        if self.plain.maps() is not None:
            outer, inner = (m.inverse_transpose for m in self.plain.maps())
            weight = _mapped(weight, outer, inner)
        weight = _rounded(weight, learned.clip, learned.w_bits)
        return functional.linear(self.plain.activation(x), weight, learned.bias)


def plain_form_(trained: nn.Module, found: LearnedBlock) -> None:
    """Put plain linears with the same parameters in the place of the learned ones."""
    inputs = {id(shared): _PlainInput(shared) for shared in found.inputs.values()}
    for name, learned in found.linears.items():
        replace_module_(trained, name, _PlainLinear(learned, inputs[id(learned.shared)]))
