"""oneDNN's 8-bit product, through torch: the weight is laid out once, for the units at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

from harness.kernels.contract import Kernel
from harness.kernels.processor import INTEGER_UNITS, integer_units
from harness.kernels.product import Product, refusal_of_groups

if TYPE_CHECKING:
    from torch import Tensor

    from harness.kernels.product import IntegerWeight
    from harness.quant.layers.linear import QuantLinear

_TOKENS = 1024
"""Tokens for which the weight is laid out; any number can be computed."""


class OneDNNInt8(Kernel):
    """Signed 8-bit codes on both sides, sums in 32 bits."""

    name: ClassVar[str] = "onednn-int8"

    def missing(self, device: torch.device) -> str | None:
        """It needs a CPU with units for 8-bit integers, and a torch with oneDNN."""
        if device.type != "cpu":
            return "it is for processors"
        if not integer_units():
            return f"the processor has none of {', '.join(INTEGER_UNITS)}"
        if not torch.backends.mkldnn.is_available() or not hasattr(
            torch.ops.onednn, "qlinear_pointwise"
        ):
            return "this torch was built without oneDNN"
        return None

    def refusal(self, layer: QuantLinear) -> str | None:
        """It takes one step for each output channel and token."""
        return refusal_of_groups(layer)

    def product(self, layer: QuantLinear) -> Product:
        """Lay the weight out."""
        return _Product(layer)


class _Product(Product):
    def lay_out(self, weight: IntegerWeight) -> None:
        """Let oneDNN do it."""
        # held by no buffer: a layout of oneDNN can neither be copied nor moved
        self.held = torch.ops.onednn.qlinear_prepack(weight.codes, [_TOKENS, self.in_features])
        self.register_buffer("scale", weight.scale)
        self.register_buffer("no_zeros", torch.zeros(self.out_features, dtype=torch.int32))

    scale: Tensor
    no_zeros: Tensor

    def scaled(self, values: Tensor) -> Tensor:
        """Multiply; the input's step is taken as 1."""
        found: Tensor = torch.ops.onednn.qlinear_pointwise(
            values, 1.0, 0, self.held, self.scale, self.no_zeros, None, 1.0, 0, torch.float32,
            "none", [], "",
        )  # fmt: skip
        return found
