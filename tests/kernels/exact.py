"""A kernel for every machine: sums of products in double precision, in which they are exact."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.kernels.contract import Kernel
from harness.kernels.layer import KernelLinear, SharedInput
from harness.kernels.product import IntegerWeight, Product, refusal_of_groups

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from harness.quant.layers.linear import QuantLinear


class Exact(Kernel):
    """The yardstick."""

    name = "exact"

    def missing(self, device: torch.device) -> str | None:
        """It runs anywhere."""
        return None

    def refusal(self, layer: QuantLinear) -> str | None:
        """It takes no groups."""
        return refusal_of_groups(layer)

    def product(self, layer: QuantLinear) -> Product:
        """Keep the codes."""
        return ExactProduct(layer)


class ExactProduct(Product):
    """Its product."""

    def lay_out(self, weight: IntegerWeight) -> None:
        """As it is."""
        self.codes, self.steps = weight.codes, weight.scale

    def scaled(self, values: Tensor) -> Tensor:
        """Multiply, then scale."""
        return (values.double() @ self.codes.double().t()).float() * self.steps


def by_kernel(layer: QuantLinear, kernel: Kernel) -> KernelLinear:
    """A layer that computes on a kernel and reads its input alone."""
    return KernelLinear(layer, kernel, SharedInput(kernel.reader([layer]), 1))
