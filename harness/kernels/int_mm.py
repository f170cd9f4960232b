"""torch's own 8-bit product: cuBLAS on a GPU. A yardstick, and what is there without anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from harness.kernels.contract import Kernel
from harness.kernels.product import Product, refusal_of_groups

if TYPE_CHECKING:
    from torch import Tensor

    from harness.kernels.product import IntegerWeight
    from harness.quant.layers.linear import QuantLinear

_FEWEST_TOKENS = 17
_MULTIPLE = 8
"""cuBLAS wants more than 16 rows and widths that are multiples of 8 (torch's ``_int_mm``)."""


class IntMM(Kernel):
    """Signed 8-bit codes on both sides; sums of 32 bits are seen before they are scaled."""

    name: ClassVar[str] = "int-mm"

    def missing(self, device: torch.device) -> str | None:
        """It needs a GPU that multiplies 8-bit integers (compute capability 7.5)."""
        if device.type != "cuda":
            return "it is for NVIDIA GPUs"
        if torch.cuda.get_device_capability(device) < (7, 5):
            return "the GPU multiplies no 8-bit integers"
        return None

    def refusal(self, layer: QuantLinear) -> str | None:
        """It takes one step for each output channel and token."""
        return refusal_of_groups(layer)

    def product(self, layer: QuantLinear) -> Product:
        """Keep the weight as it is, its widths filled up to multiples of 8."""
        return _Product(layer)


class _Product(Product):
    def lay_out(self, weight: IntegerWeight) -> None:
        """Fill the widths up."""
        self.short = -self.in_features % _MULTIPLE
        padded = nn.functional.pad(weight.codes, (0, self.short, 0, -self.out_features % _MULTIPLE))
        self.register_buffer("codes", padded)
        self.register_buffer("scale", weight.scale)

    codes: Tensor
    scale: Tensor

    def accumulators(self, values: Tensor) -> Tensor:
        """``C W^T``, int32 ``[tokens, out_features]``."""
        tokens = len(values)
        missing = max(0, _FEWEST_TOKENS - tokens)
        whole = nn.functional.pad(values, (0, self.short, 0, missing))
        return torch._int_mm(whole, self.codes.t())[:tokens, : self.out_features]

    def scaled(self, values: Tensor) -> Tensor:
        """Multiply, then scale."""
        return self.accumulators(values).float().mul_(self.scale)
