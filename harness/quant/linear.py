"""The quantized linear layer, the one form in which every method leaves its result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from harness.bits import IDENTITY_WIDTH
from harness.quant.activation import ActivationSpec, quantize_activation
from harness.quant.grid import Affine, decode, encode, expand, storable, weight_grid

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.quant.transform import Transform


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightSpec:
    """How a weight is rounded.

    Attributes:
        bits: Width; 16 keeps the weight in the model's dtype.
        symmetric: Grid without zero point.
        group: Input channels that share a step; 0 for one step for each output channel.
    """

    bits: int
    symmetric: bool = True
    group: int = 0


class QuantLinear(nn.Module):
    """``y = Q_a(T(x)) W_q^T + bias`` with W_q on an integer grid.

    The forward pass here is simulated: values sit on the grid, arithmetic is floating point.

    Args:
        weight: WeightSpec of the stored codes.
        codes: Integer codes ``[out_features, in_features]`` (any dtype), or the weight itself at
            width 16.
        grid: Step and zero point ``[out_features, groups]``; None at width 16.
        bias: ``[out_features]`` or None.
        transforms: Applied to the input in order.
        activation: How the transformed input is rounded.
    """

    codes: Tensor
    scale: Tensor | None
    zero: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        *,
        weight: WeightSpec,
        codes: Tensor,
        grid: Affine | None,
        bias: Tensor | None,
        transforms: Sequence[nn.Module],
        activation: ActivationSpec,
    ) -> None:
        super().__init__()
        if (grid is None) != (weight.bits == IDENTITY_WIDTH):
            raise ValueError("a grid is needed below 16 bits and only there")
        self.weight_spec = weight
        self.activation_spec = activation
        self.transforms = nn.ModuleList(transforms)
        self.out_features, self.in_features = codes.shape
        stored = (
            codes
            if grid is None
            else codes.to(torch.uint8 if grid.zero is not None else torch.int8)
        )
        self.register_buffer("codes", stored.detach().clone())
        self.register_buffer("scale", None if grid is None else grid.scale.detach().float().clone())
        zero = (
            None
            if grid is None or grid.zero is None
            else grid.zero.detach().to(torch.uint8).clone()
        )
        self.register_buffer("zero", zero)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self._dequantized: Tensor | None = None

    @property
    def grid(self) -> Affine | None:
        """Step and zero point as floats, None at width 16."""
        if self.scale is None:
            return None
        return Affine(self.scale, None if self.zero is None else self.zero.float())

    def dequantized(self) -> Tensor:
        """The weight on its grid, in the transformed basis, float32 ``[out, in]``."""
        if self.grid is None:
            return self.codes
        return decode(self.codes.float(), expand(self.grid, self.weight_spec.group))

    def transform(self, x: Tensor) -> Tensor:
        """Apply the input transforms."""
        for transform in self.transforms:
            x = transform(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer, simulated; ``[..., in_features]`` to ``[..., out_features]``."""
        if self._dequantized is None or self._dequantized.dtype != x.dtype:
            self._dequantized = self.dequantized().to(x.dtype)
        x = quantize_activation(self.transform(x), self.activation_spec)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return nn.functional.linear(x, self._dequantized, bias)

    def extra_repr(self) -> str:
        """Name the widths in ``print(model)``."""
        return (
            f"{self.in_features}, {self.out_features}, w{self.weight_spec.bits}"
            f"a{self.activation_spec.bits}, group={self.weight_spec.group}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantLinear:
        """Drop the cached weight when the module moves to another device or dtype."""
        self._dequantized = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


def transformed_weight(weight: Tensor, transforms: Sequence[nn.Module]) -> Tensor:
    """Map a weight into the basis that the input transforms create."""
    for transform in cast("Sequence[Transform]", transforms):
        weight = transform.weight(weight)
    return weight


def quantize_linear(
    linear: nn.Linear,
    weight: WeightSpec,
    activation: ActivationSpec,
    *,
    transforms: Sequence[nn.Module] = (),
    clip: Tensor | float = 1.0,
    clip_low: Tensor | float | None = None,
    grid: Affine | None = None,
    codes: Tensor | None = None,
) -> QuantLinear:
    """Round a linear to nearest, or wrap codes that another rounding found.

    Args:
        linear: The layer to replace; it is not changed.
        weight: How the weight is rounded.
        activation: How the input is rounded.
        transforms: Input transforms; the weight is mapped accordingly.
        clip: Factor on the range (its maximum where ``clip_low`` is given), number or
            ``[out, groups]``.
        clip_low: Factor on the minimum.
        grid: Grid to use instead of one fitted to the range, ``[out, groups]``.
        codes: Codes ``[out, in]`` on ``grid``, from GPTQ or AdaRound; None rounds to nearest.
    """
    mapped = transformed_weight(linear.weight.detach().float(), transforms)
    bias = None if linear.bias is None else linear.bias.detach()
    if weight.bits == IDENTITY_WIDTH:
        return QuantLinear(
            weight=weight, codes=mapped.to(linear.weight.dtype), grid=None, bias=bias,
            transforms=transforms, activation=activation,
        )  # fmt: skip
    if grid is None:
        grid = stored_grid(
            weight_grid(
                mapped, weight.bits, symmetric=weight.symmetric, group=weight.group,
                clip=clip, clip_low=clip_low,
            )
        )  # fmt: skip
    if codes is None:
        codes = encode(mapped, expand(grid, weight.group), weight.bits)
    return QuantLinear(
        weight=weight,
        codes=codes,
        grid=grid,
        bias=bias,
        transforms=transforms,
        activation=activation,
    )


def stored_grid(grid: Affine) -> Affine:
    """The grid as the artifact will hold it: steps in storage precision."""
    return Affine(storable(grid.scale), grid.zero)
