"""A kernel for every machine: sums of products in double precision, in which they are exact."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.kernels.product import IntegerWeight, Kernel, Product

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Exact(Kernel):
    """The yardstick."""

    name = "exact"

    def missing(self, device: torch.device) -> str | None:
        """It runs anywhere."""
        return None

    def product(self, weight: IntegerWeight, bias: Tensor | None) -> Product:
        """Keep the codes."""
        return ExactProduct(weight, bias)


class ExactProduct(Product):
    """Its product."""

    def __init__(self, weight: IntegerWeight, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        self.codes, self.steps = weight.codes, weight.scale

    def scaled(self, values: Tensor) -> Tensor:
        """Multiply, then scale."""
        return (values.double() @ self.codes.double().t()).float() * self.steps
