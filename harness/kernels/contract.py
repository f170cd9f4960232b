"""The contract of kernels; a plug-in registers its own as an entry point ``harness.kernels``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from harness.kernels.codes import input_codes
from harness.quant.layers.activation import in_chunks

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    import torch
    from torch import Tensor, nn

    from harness.quant.layers.linear import QuantLinear


class Codes(Protocol):
    """A rounded input in the layout of a kernel."""

    def values_of(self, dtype: torch.dtype) -> Tensor:
        """The input on its grid, ``[tokens, in_features]``, as the simulation has it."""


class ReadInput(NamedTuple):
    """What is known of an input once it is transformed and rounded.

    Attributes:
        codes: Of all tokens, those of leading dimensions in a row, as the kernel's reader made
            them for its products.
        exact: The transformed input before the rounding, in the shape of the input; None where no
            reader wants it.
    """

    codes: Any
    exact: Tensor | None


class Kernel:
    """What computes quantized linears by products of integers on a kind of device.

    Attributes:
        name: In the table, after ``kernel:``.
        lanes: Width that the products are computed in.
    """

    name: ClassVar[str]
    lanes: ClassVar[str] = "int8"

    def missing(self, device: torch.device) -> str | None:
        """Why it cannot run on a device at all; None where it can."""
        raise NotImplementedError(self.name)

    def refusal(self, layer: QuantLinear) -> str | None:
        """Why it cannot compute a layer; None where it can.

        What no kernel can compute never comes here (``dispatch.general_refusal``).
        """
        raise NotImplementedError(self.name)

    def layout(self, layer: QuantLinear) -> Hashable:
        """What of a layer, beside transforms and rounding, its input's layout depends on.

        Layers that read one tensor share its codes where this is equal.
        """
        return None

    def reader(self, layers: Sequence[QuantLinear]) -> Callable[[Tensor], ReadInput]:
        """What transforms and rounds an input ``[..., tokens, in_features]`` for some layers.

        Args:
            layers: They transform and round it alike, and their layouts are equal.
        """
        return Reader(layers)

    def product(self, layer: QuantLinear) -> nn.Module:
        """A layer's product, its weight laid out as the kernel wants it.

        Returns:
            A module whose ``forward(codes, out)`` computes the layer from what its reader made into
            ``out``, ``[tokens, out_features]``, bias included and any low-rank branch left out; it
            writes every value.
        """
        raise NotImplementedError(self.name)


class Reader:
    """Transforms and rounds by torch, into codes that lie row by row.

    Args:
        layers: Its readers.
    """

    def __init__(self, layers: Sequence[QuantLinear]) -> None:
        self.transform = layers[0].transform
        self.transforms = len(layers[0].transforms)
        self.spec = layers[0].activation_spec
        self.keeps = wants_exact(layers)

    def __call__(self, x: Tensor) -> ReadInput:
        """Read an input ``[..., tokens, in_features]``."""
        exact = in_chunks(x, self.transform) if self.transforms else x
        codes = input_codes(exact.reshape(-1, exact.shape[-1]), self.spec)
        return ReadInput(codes, exact if self.keeps else None)


def wants_exact(layers: Sequence[QuantLinear]) -> bool:
    """Whether a low-rank branch beside one of some layers reads the input before its rounding."""
    return any(one.low_rank is not None and not one.low_rank.rounded for one in layers)
