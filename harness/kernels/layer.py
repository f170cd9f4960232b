"""A quantized linear that runs on a kernel, and the input that several of them read."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.kernels.contract import Kernel, ReadInput
    from harness.quant.layers.linear import QuantLinear
    from harness.quant.layers.low_rank import LowRank


class SharedInput:
    """Transforms and rounds an input once for all linears that read it.

    Args:
        read: What does it, of the kernel of all of them.
        readers: How many they are.
    """

    def __init__(self, read: Callable[[Tensor], ReadInput], readers: int) -> None:
        self.read = read
        self.readers = readers
        self._of: weakref.ref[Tensor] | None = None
        self._found: ReadInput | None = None
        self._left = 0
        self._version = 0

    def __call__(self, x: Tensor) -> ReadInput:
        """Codes of ``x``, ``[..., tokens, in_features]``; those of the last one, if it is that."""
        version = _version(x)
        same = self._of is not None and self._of() is x and self._version == version
        if not same or self._found is None:
            self._found, self._left = self.read(x), self.readers
            self._of, self._version = weakref.ref(x), version
        found = self._found
        self._left -= 1
        if self._left <= 0:
            self._of, self._found = None, None
        return found


def _version(x: Tensor) -> int:
    """How often a tensor was written to; inference tensors do not say."""
    return 0 if x.is_inference() else x._version


class KernelLinear(nn.Module):
    """A quantized linear whose product is one of integers.

    Holds no packed codes: the weight lies as the kernel wants it.

    Args:
        layer: What it computes.
        kernel: By what.
        shared: The input that it reads.
    """

    def __init__(self, layer: QuantLinear, kernel: Kernel, shared: SharedInput) -> None:
        super().__init__()
        self.kernel = kernel.name
        self.lanes = kernel.lanes
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.product = kernel.product(layer)
        self.low_rank = layer.low_rank
        self.shared = shared

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer; ``[..., in_features]`` to ``[..., out_features]``."""
        found = self.shared(x)
        y = torch.empty(*x.shape[:-1], self.out_features, dtype=x.dtype, device=x.device)
        self.product(found.codes, y.view(-1, self.out_features))
        return y if self.low_rank is None else y.add_(self._beside(self.low_rank, found, x))

    def _beside(self, branch: LowRank, found: ReadInput, x: Tensor) -> Tensor:
        if branch.rounded:
            return cast("Tensor", branch(found.codes.values_of(x.dtype).view(x.shape)))
        if found.exact is None:
            raise RuntimeError("the transformed input of a low-rank branch was not kept")
        return cast("Tensor", branch(found.exact))

    def extra_repr(self) -> str:
        """Name the kernel in ``print(model)``."""
        return f"{self.in_features}, {self.out_features}, kernel:{self.kernel}"
