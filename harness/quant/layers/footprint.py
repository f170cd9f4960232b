"""What quantized layers take: bytes that stay, and bytes of one call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.bits import IDENTITY_WIDTH
from harness.quant.layers.activation import work_values
from harness.quant.layers.expansion import CHUNK, EXPANDED
from harness.quant.layers.layers import quantized_layers
from harness.quant.layers.switch import SwitchedLinear

if TYPE_CHECKING:
    import torch
    from torch import nn

    from harness.quant.layers.linear import QuantLinear

_WIDE = 4  # bytes of a value while it is rounded or expanded: float32
_ROUNDING, _TRANSFORM, _EXPANSION = 2, 4, 3
"""Copies in float32 of the values in work: the input and its magnitudes; what a rotation holds;
codes as bytes and floats with the parts they are unpacked from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CallBytes:
    """Bytes that a call of a layer takes beside its input, at most.

    Attributes:
        weight: The expanded weight and the work on it.
        rounding: The rounded input and the work on it.
        output: The output, twice where a branch is added to it.
    """

    weight: int
    rounding: int
    output: int

    @property
    def peak(self) -> int:
        """All of it: the weight is there while the input is rounded, and both in the product."""
        return self.weight + self.rounding + self.output


def resident_bytes(module: nn.Module) -> int:
    """Bytes of the parameters and buffers of a module, those held twice counted once.

    Expanded weights that are kept between calls are counted; they are bounded for the process
    (``expansion.py``).
    """
    held = {
        value.untyped_storage()._cdata: value.untyped_storage().nbytes()
        for tensors in (module.parameters(), module.buffers())
        for value in tensors
    }
    return sum(held.values()) + sum(EXPANDED.used(m) for m in module.modules())


def bytes_per_weight(transformer: nn.Module) -> float:
    """Resident bytes of the quantized linears for each of their weights; 0 without any."""
    layers = quantized_layers(transformer).values()
    weights = sum(layer.in_features * layer.out_features for layer in layers)
    return sum(resident_bytes(layer) for layer in layers) / max(1, weights)


def call_bytes(
    layer: QuantLinear | SwitchedLinear, tokens: int, dtype: torch.dtype, *, device: str = "cuda"
) -> CallBytes:
    """Estimate what a call without gradient takes.

    Args:
        layer: The layer; of a switched one, the form that takes most.
        tokens: Tokens of the input, all batch entries together.
        dtype: Of the input.
        device: Kind of device, which decides how many values are in work at a time.
    """
    if isinstance(layer, SwitchedLinear):
        every = [call_bytes(form, tokens, dtype, device=device) for form in layer.forms]
        return max(every, key=lambda each: each.peak)
    values, weights = tokens * layer.in_features, layer.out_features * layer.in_features
    out = tokens * layer.out_features * dtype.itemsize
    branch = layer.low_rank
    weight = weights * dtype.itemsize if layer.scale is not None else 0
    weight += min(weights, CHUNK) * _EXPANSION * _WIDE if layer.scale is not None else 0
    copies, work = 0, 0
    if len(layer.transforms):
        copies, work = 1, _TRANSFORM
    if layer.activation_spec.bits < IDENTITY_WIDTH:
        # rounded in place of the transformed input, unless a branch reads that
        copies = 1 + int(bool(copies) and branch is not None and not branch.rounded)
        work = max(work, _ROUNDING)
    return CallBytes(
        weight=weight,
        rounding=copies * values * dtype.itemsize + work * _WIDE * work_values(values, device),
        output=out * (1 if branch is None else 2),
    )
