"""AdaRound (arXiv 2004.10568): learning for every weight whether to round up or down.

Also the static per-tensor activation step that is learned beside it (LSQ), as Q-Diffusion and
PTQ4DiT do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.api import IDENTITY_WIDTH
from harness.quant import Affine, code_range, decode, fake_quantize

if TYPE_CHECKING:
    from collections.abc import Sequence

ZETA, GAMMA = 1.1, -0.1  # stretch of the rectified sigmoid, AdaRound eq. 23


class StaticActivation(nn.Module):
    """Per-tensor static activation quantizer with a learned step and a fixed zero point.

    Args:
        grid: Initial scalar step and zero point; None leaves the activation alone.
        bits: Width.
    """

    zero: Tensor | None

    def __init__(self, grid: Affine | None, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.scale = None if grid is None else nn.Parameter(grid.scale.detach().clone())
        zero = None if grid is None or grid.zero is None else grid.zero.detach().clone()
        self.register_buffer("zero", zero)

    def forward(self, x: Tensor) -> Tensor:
        """Round an activation of any shape to the grid and come back."""
        if self.scale is None:
            return x
        return fake_quantize(x, Affine(self.scale, self.zero), self.bits)

    def limits(self) -> tuple[float, float] | None:
        """Learned range (low, high), None where the activation is left alone."""
        if self.scale is None or self.zero is None:
            return None
        scale, zero = float(self.scale.detach()), float(self.zero)
        return -zero * scale, (code_range(self.bits, False).high - zero) * scale


class AdaRoundLinear(nn.Module):
    """A linear whose rounding directions are trained.

    Args:
        weight: ``[out_features, in_features]`` in the basis of ``transforms``; frozen.
        bias: ``[out_features]`` or None.
        grid: Step and zero point ``[out_features, 1]`` of the weight, None at width 16.
        bits: Weight width.
        activation: Quantizer of the transformed input; shared within an input group.
        transforms: Input transforms.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        grid: Affine | None,
        bits: int,
        activation: StaticActivation,
        transforms: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.weight, self.bias = weight, None if bias is None else bias.detach().to(weight.dtype)
        self.bits, self.grid, self.activation = bits, grid, activation
        self.transforms = nn.ModuleList(transforms)
        self.rounding: nn.Parameter | None = None
        if grid is not None and bits < IDENTITY_WIDTH:
            ratio = weight / grid.scale
            self._floor = ratio.floor()
            fraction = (ratio - self._floor).clamp(1e-4, 1 - 1e-4)
            self.rounding = nn.Parameter(torch.logit((fraction - GAMMA) / (ZETA - GAMMA)))
        self._soft: Tensor | None = None

    def begin_step(self) -> None:
        """Soft-round the weight for the optimiser step that begins: within it, once is enough."""
        self._soft = self._soft_rounded()

    def up(self) -> Tensor:
        """h(alpha) in [0, 1], how far each weight is rounded up."""
        if self.rounding is None:
            raise ValueError("this layer's weight is not quantized")
        return (self.rounding.sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer with soft-rounded weights; ``[..., in]`` to ``[..., out]``."""
        for transform in self.transforms:
            x = transform(x)
        weight = self._soft_rounded() if self._soft is None else self._soft
        return functional.linear(self.activation(x), weight, self.bias)

    def _soft_rounded(self) -> Tensor:
        if self.rounding is None or self.grid is None:
            return self.weight
        return decode(self._clamped(self._floor + self.up(), self.grid), self.grid)

    def _clamped(self, centred: Tensor, grid: Affine) -> Tensor:
        codes = centred if grid.zero is None else centred + grid.zero
        return codes.clamp(*code_range(self.bits, grid.zero is None))

    @torch.no_grad()
    def codes(self) -> Tensor | None:
        """Hard-rounded codes ``[out_features, in_features]``; None at width 16."""
        if self.rounding is None or self.grid is None:
            return None
        return self._clamped(self._floor + (self.up() >= 0.5), self.grid)

    def regulariser(self, beta: float) -> Tensor:
        """Sum over weights of 1 - |2h - 1|^beta, which drives h to 0 or 1 (AdaRound eq. 24)."""
        return (1 - (2 * self.up() - 1).abs().pow(beta)).sum()


def annealed_beta(progress: float, warmup: float, start: float, stop: float) -> float | None:
    """Exponent of the regulariser; None during the warm-up, then linear from start to stop."""
    if progress < warmup:
        return None
    return start + (stop - start) * (progress - warmup) / (1 - warmup)
