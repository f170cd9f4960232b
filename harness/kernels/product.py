"""Products of input and weight codes by a library, and torch's arithmetic around them.

With codes ``C`` (step ``s``, zero point ``z`` of a token) and ``W`` (step ``t``, zero point ``v``
of an output channel) over ``n`` input channels,

    y = s t [(C - z)(W - v)^T] + b = s (t [C W^T] - (t v) [sum C] - z (t [sum W - n v])) + b,

where the brackets are sums of integers, exact in 32 bits.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from harness.kernels.codes import offset

if TYPE_CHECKING:
    from harness.kernels.codes import InputCodes
    from harness.quant.layers.linear import QuantLinear

INT32_MOST = (1 << 31) - 1
LANE_MOST = 128
"""Largest magnitude of a code in an 8-bit lane."""

WIDEST = INT32_MOST // (LANE_MOST * LANE_MOST)
"""Input channels, 131 071, up to which no sum of products of two 8-bit lanes leaves 32 bits."""

_BLOCK, _FEWEST = 1 << 20, 256
"""Values of an output computed at a time on a processor, 4 MB in float32; and tokens at least, so
that a block's product is long enough for the weight to be read from memory meanwhile."""


class IntegerWeight(NamedTuple):
    """A weight as a kernel takes it: ``w = (codes - zero) * scale``.

    Attributes:
        codes: int8 ``[out_features, in_features]``.
        scale: float32 ``[out_features]``.
        zero: float32 ``[out_features]``, None on a symmetric grid.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None


def integer_weight(layer: QuantLinear) -> IntegerWeight:
    """The weight of a layer with one step for each output channel.

    Raises:
        ValueError: Its weight has 16 bits, or steps for groups of input channels.
    """
    spec, grid = layer.weight_spec, layer.grid
    if grid is None or spec.group:
        raise ValueError("a weight with a step for each output channel is needed")
    shift = offset(spec.bits, symmetric=grid.zero is None)
    codes = layer.codes
    lanes = codes if codes.dtype == torch.int8 else (codes.to(torch.int16) - shift).to(torch.int8)
    rows = layer.out_features
    zero = None if grid.zero is None else (grid.zero - shift).reshape(-1).expand(rows).contiguous()
    return IntegerWeight(lanes, grid.scale.reshape(-1).expand(rows).contiguous(), zero)


class Product(nn.Module):
    """``y = x W^T + bias`` from codes; a kernel adds the product of integers.

    Args:
        layer: With one step for each output channel.
    """

    def __init__(self, layer: QuantLinear) -> None:
        super().__init__()
        weight, bias = integer_weight(layer), layer.bias
        self.out_features, self.in_features = weight.codes.shape
        sums = weight.codes.sum(1, dtype=torch.int64).double()
        if weight.zero is not None:
            sums -= self.in_features * weight.zero.double()
        moved = None if weight.zero is None else weight.scale * weight.zero
        constant = torch.zeros_like(weight.scale) if bias is None else bias.detach().float()
        self.register_buffer("scaled_sums", (sums * weight.scale.double()).float())
        self.register_buffer("scaled_zeros", moved)
        self.register_buffer("constant", constant)
        self.lay_out(weight)

    scaled_sums: Tensor
    scaled_zeros: Tensor | None
    constant: Tensor

    @abstractmethod
    def lay_out(self, weight: IntegerWeight) -> None:
        """Keep the weight as it is multiplied."""

    @abstractmethod
    def scaled(self, values: Tensor) -> Tensor:
        """``t [C W^T]``, float32 ``[tokens, out_features]``, of int8 ``[tokens, in_features]``."""

    def forward(self, codes: InputCodes, out: Tensor) -> None:
        """Compute ``y`` into ``out``.

        Args:
            codes: The rounded input.
            out: ``[tokens, out_features]``, every value of which is written.
        """
        tokens = len(codes.values)
        on_processor = out.device.type == "cpu"
        step = max(_FEWEST, _BLOCK // self.out_features) if on_processor else max(1, tokens)
        for start in range(0, tokens, step):
            part = slice(start, start + step)
            scale, zero = _rows(codes, part)
            y = self._centred(codes.values[part], zero)
            out[part] = y.mul_(scale).add_(self.constant)

    def _centred(self, values: Tensor, zero: Tensor | None) -> Tensor:
        """``t [(C - z)(W - v)^T]``, float32 ``[tokens, out_features]``."""
        y = self.scaled(values)
        if self.scaled_zeros is not None:
            sums = values.sum(1, keepdim=True, dtype=torch.int32).float()
            y.addmm_(sums, self.scaled_zeros[None], alpha=-1)
        if zero is not None:
            y.addmm_(zero.expand(len(y), 1), self.scaled_sums[None], alpha=-1)
        return y


def _rows(codes: InputCodes, part: slice) -> tuple[Tensor, Tensor | None]:
    if len(codes.scale) == 1:
        return codes.scale, codes.zero
    return codes.scale[part], None if codes.zero is None else codes.zero[part]


def refusal_of_groups(layer: QuantLinear) -> str | None:
    """Why a kernel with one step for each output channel and token cannot compute a layer."""
    weight, activation = layer.weight_spec, layer.activation_spec
    if weight.group:
        return f"weights have a step for each {weight.group} input channels"
    if activation.group:
        return f"activations have a step for each {activation.group} channels of a token"
    if layer.in_features > WIDEST:
        return f"{layer.in_features} input channels could leave 32 bits"
    return None
