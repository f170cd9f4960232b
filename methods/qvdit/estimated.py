"""The trainable form of a linear with Q-VDiT's token-aware quantization estimator.

Weight steps are learned through the rounding (LSQ), the estimator is a rank-1 branch behind it with
one gain a frame (arXiv 2505.22167). After training everything becomes data of a ``QuantLinear``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.api import IDENTITY_WIDTH
from harness.quant import (
    SCALE_FLOOR,
    ActivationSpec,
    Affine,
    LowRank,
    QuantLinear,
    WeightSpec,
    encode,
    fake_quantize,
    quantize_activation,
    quantize_linear,
    stored_grid,
    token_gains,
    weight_grid,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


def l2_grid(weight: Tensor, bits: int, points: int) -> Affine:
    """Asymmetric grid of every row whose clipped range gives the smallest squared error.

    Args:
        weight: ``[out_features, in_features]``.
        bits: Width.
        points: Shares of the full range that are tried: 1/points, 2/points, ... 1.

    Returns:
        Step and zero point ``[out_features, 1]``.
    """
    best = weight_grid(weight, bits, symmetric=False)
    least = (fake_quantize(weight, best, bits) - weight).square().sum(-1, keepdim=True)
    for point in range(points - 1, 0, -1):
        grid = weight_grid(weight, bits, symmetric=False, clip=point / points)
        error = (fake_quantize(weight, grid, bits) - weight).square().sum(-1, keepdim=True)
        better = error < least
        least = torch.where(better, error, least)
        scale = torch.where(better, grid.scale, best.scale)
        assert best.zero is not None
        assert grid.zero is not None
        best = Affine(scale, torch.where(better, grid.zero, best.zero))
    return best


def kaiming(rank: int, width: int, generator: torch.Generator) -> Tensor:
    """A down-projection ``[rank, width]`` as PyTorch starts a linear: Kaiming, a = sqrt 5."""
    bound = 1 / math.sqrt(width)
    return (torch.rand(rank, width, generator=generator) * 2 - 1) * bound


class TokenEstimator(nn.Module):
    """``z -> ((M * z) alpha) beta``, the estimate of what the rounding lost.

    Args:
        down: alpha ``[1, in_features]``.
        out_features: Channels of beta, which starts at zero.
        gain: M ``[frames]``; None where the linear sees no frames.
        text_tokens: Tokens before the frames (behind them where negative), gain 1.
    """

    def __init__(
        self, down: Tensor, out_features: int, gain: Tensor | None, text_tokens: int
    ) -> None:
        super().__init__()
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(down.new_zeros(out_features, down.shape[0]))
        self.gain = None if gain is None else nn.Parameter(gain.detach().clone())
        self.text_tokens = text_tokens

    def forward(self, z: Tensor) -> Tensor:
        """Estimate, ``[..., tokens, in_features]`` to ``[..., tokens, out_features]``."""
        inner = functional.linear(z, self.down)
        if self.gain is not None:
            inner = inner * token_gains(self.gain, z.shape[-2], self.text_tokens)[:, None]
        return functional.linear(inner, self.up)

    def low_rank(self) -> LowRank:
        """The branch as it is stored."""
        # bfloat16: a beta that has just left zero is subnormal in half precision
        gain = None if self.gain is None else self.gain.detach().half().float()
        return LowRank(
            self.down.detach().bfloat16().float(), self.up.detach().bfloat16().float(),
            rounded=True, gain=gain, text_tokens=self.text_tokens,
        )  # fmt: skip


class EstimatedLinear(nn.Module):
    """A linear whose weight steps and estimator are trained.

    Args:
        linear: The full-precision layer; its parameters are read and stay where they are.
        bits: Weight width; 16 leaves the weight alone.
        activation: How the input is rounded.
        points: Grid points of the initial range search.
        estimator: The branch behind the rounding, None for none.
        inner: Down-projection ``[rank, in_features]`` of a branch that is added to the weight
            before the rounding, None for none.
    """

    def __init__(
        self,
        linear: nn.Linear,
        bits: int,
        activation: ActivationSpec,
        *,
        points: int,
        estimator: TokenEstimator | None = None,
        inner: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.weight = linear.weight.detach().float()
        self.bias = None if linear.bias is None else linear.bias.detach().float()
        self.bits, self.activation, self.estimator = bits, activation, estimator
        self.round_input = True
        self.scale: nn.Parameter | None = None
        self.zero: Tensor | None = None
        if bits < IDENTITY_WIDTH:
            grid = l2_grid(self.weight, bits, points)
            self.scale, self.zero = nn.Parameter(grid.scale.clone()), grid.zero
        self.inner_down = self.inner_up = None
        if inner is not None and self.scale is not None:
            self.inner_down = nn.Parameter(inner)
            self.inner_up = nn.Parameter(inner.new_zeros(linear.out_features, inner.shape[0]))

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer on rounded values; ``[..., in]`` to ``[..., out]``, differentiable."""
        if self.round_input:
            x = quantize_activation(x, self.activation)
        weight = self._adjusted()
        if self.scale is not None:
            weight = fake_quantize(weight, Affine(self.scale, self.zero), self.bits)
        y = functional.linear(x, weight, self.bias)
        return y if self.estimator is None else y + self.estimator(x)

    def _adjusted(self) -> Tensor:
        """The weight that is rounded."""
        if self.inner_down is None or self.inner_up is None:
            return self.weight
        return self.weight + self.inner_up @ self.inner_down

    @torch.no_grad()
    def quantized(self, linear: nn.Linear) -> QuantLinear:
        """What the training left, as data.

        Args:
            linear: The layer this one was made from.
        """
        spec = WeightSpec(bits=self.bits, symmetric=False)
        branch = None if self.estimator is None else self.estimator.low_rank()
        if self.scale is None:
            return quantize_linear(linear, spec, self.activation, low_rank=branch)
        grid = stored_grid(Affine(self.scale.detach().clamp_min(SCALE_FLOOR), self.zero))
        codes = encode(self._adjusted(), grid, self.bits)
        return quantize_linear(
            linear, spec, self.activation, grid=grid, codes=codes, low_rank=branch
        )

    def steps(self) -> Iterator[nn.Parameter]:
        """Trained weight steps."""
        if self.scale is not None:
            yield self.scale

    def corrections(self) -> Iterator[nn.Parameter]:
        """Trained branches."""
        if self.estimator is not None:
            yield from self.estimator.parameters()
        for parameter in (self.inner_down, self.inner_up):
            if parameter is not None:
                yield parameter
