"""A quantized linear that runs on a kernel, and the input that several of them read."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn

from harness.kernels.codes import InputCodes, input_codes, values_of
from harness.kernels.product import integer_weight
from harness.quant.layers.activation import in_chunks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.kernels.product import Kernel, Product
    from harness.quant.layers.linear import QuantLinear
    from harness.quant.layers.low_rank import LowRank


class ReadInput(NamedTuple):
    """What is known of an input once it is transformed and rounded.

    Attributes:
        codes: Of all tokens, those of leading dimensions in a row.
        exact: The transformed input before the rounding, None where no reader wants it.
    """

    codes: InputCodes
    exact: Tensor | None


class SharedInput(nn.Module):
    """Transforms and rounds an input once for all linears that read it.

    Args:
        layers: Its readers; transforms and rounding are those of the first.
    """

    def __init__(self, layers: Sequence[QuantLinear]) -> None:
        super().__init__()
        first = layers[0]
        self.transforms = first.transforms
        self.spec = first.activation_spec
        self.readers = len(layers)
        self.keeps = any(one.low_rank is not None and not one.low_rank.rounded for one in layers)
        self._of: weakref.ref[Tensor] | None = None
        self._found: ReadInput | None = None
        self._left = 0
        self._version = 0

    def forward(self, x: Tensor) -> ReadInput:
        """Codes of ``x``, ``[..., tokens, in_features]``; those of the last one, if it is that."""
        version = _version(x)
        same = self._of is not None and self._of() is x and self._version == version
        if not same or self._found is None:
            self._found, self._left = self._read(x), self.readers
            self._of, self._version = weakref.ref(x), version
        found = self._found
        self._left -= 1
        if self._left <= 0:
            self._of, self._found = None, None
        return found

    def _read(self, x: Tensor) -> ReadInput:
        def transform(part: Tensor) -> Tensor:
            for step in self.transforms:
                part = step(part)
            return part

        exact = in_chunks(x, transform) if len(self.transforms) else x
        codes = input_codes(exact.reshape(-1, exact.shape[-1]), self.spec)
        return ReadInput(codes, exact if self.keeps else None)


def _version(x: Tensor) -> int:
    """How often a tensor was written to; inference tensors do not say."""
    return 0 if x.is_inference() else x._version


class KernelLinear(nn.Module):
    """A quantized linear whose product is one of integers.

    Holds no packed codes: the weight lies as the kernel wants it, a byte a code.

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
        self.product: Product = kernel.product(integer_weight(layer), layer.bias)
        self.low_rank = layer.low_rank
        # not registered: it would be a part of each of its readers
        object.__setattr__(self, "shared", shared)

    shared: SharedInput

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer; ``[..., in_features]`` to ``[..., out_features]``."""
        found = self.shared(x)
        out = torch.empty(
            len(found.codes.values), self.out_features, dtype=x.dtype, device=x.device
        )
        self.product(found.codes, out)
        y = out.view(*x.shape[:-1], self.out_features)
        return y if self.low_rank is None else y.add_(self._beside(self.low_rank, found, x))

    def _beside(self, branch: LowRank, found: ReadInput, x: Tensor) -> Tensor:
        if branch.rounded:
            return cast("Tensor", branch(values_of(found.codes, x.dtype).view(x.shape)))
        if found.exact is None:
            raise RuntimeError("the transformed input of a low-rank branch was not kept")
        return cast("Tensor", branch(found.exact))

    def extra_repr(self) -> str:
        """Name the kernel in ``print(model)``."""
        return f"{self.in_features}, {self.out_features}, kernel:{self.kernel}"
