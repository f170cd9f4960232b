"""oneDNN's 8-bit product, through torch: the weight is laid out once, for the units at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

from harness.kernels.processor import INTEGER_UNITS, integer_units
from harness.kernels.product import Kernel, Product

if TYPE_CHECKING:
    from torch import Tensor

    from harness.kernels.product import IntegerWeight

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

    def product(self, weight: IntegerWeight, bias: Tensor | None) -> Product:
        """Lay the weight out."""
        return _Product(weight, bias)


class _Product(Product):
    def __init__(self, weight: IntegerWeight, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
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
