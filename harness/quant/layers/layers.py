"""What the artifact, the verification and the reports need of a quantized layer of any kind."""

from __future__ import annotations

from abc import abstractmethod
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.method import LayerReport

_KINDS = {
    "linear": ("harness.quant.layers.linear", "QuantLinear"),
    "switched": ("harness.quant.layers.switch", "SwitchedLinear"),
    "library": ("harness.quant.layers.library", "LibraryLinear"),
}


class QuantizedLayer(nn.Module):
    """A layer that stands where a linear stood, and can be stored without the method that made it.

    Attributes:
        kind: How the artifact names the class.
        in_features: Width of the input.
        out_features: Width of the output.
    """

    kind: ClassVar[str]
    in_features: int
    out_features: int

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Facts for the manifest, JSON only; ``shape`` is ``[out_features, in_features]``."""

    @abstractmethod
    def stored(self) -> dict[str, Tensor]:
        """Tensors as they lie on disk: codes packed, floats in 16 bits where that is exact."""

    @classmethod
    @abstractmethod
    def rebuild(cls, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> QuantizedLayer:
        """Undo ``describe`` and ``stored``; the layer computes the same bits."""

    @abstractmethod
    def report(self, name: str) -> LayerReport:
        """What became of the linear that stood here."""


def layer_class(kind: str) -> type[QuantizedLayer]:
    """Class of a stored kind.

    Raises:
        ValueError: The kind is not one this version knows.
    """
    if kind not in _KINDS:
        raise ValueError(f"unknown layer kind {kind!r}; known: {sorted(_KINDS)}")
    module, name = _KINDS[kind]
    found: type[QuantizedLayer] = getattr(import_module(module), name)
    return found


def quantized_layers(root: nn.Module) -> dict[str, QuantizedLayer]:
    """Every quantized layer by qualified name; parts of a layer are not counted again."""
    found: dict[str, QuantizedLayer] = {}
    inside = "\0"  # no module name starts so
    for name, module in root.named_modules():  # depth first: parts come right after their layer
        if isinstance(module, QuantizedLayer) and not name.startswith(inside):
            found[name], inside = module, f"{name}."
    return found


def compact(value: Tensor) -> Tensor:
    """Store floats in 16 bits where nothing is lost."""
    if value.dtype != torch.float32:
        return value
    for dtype in (torch.float16, torch.bfloat16):
        if torch.equal(value.to(dtype).float(), value):
            return value.to(dtype)
    return value


def dtype_name(value: Tensor) -> str:
    """``float32`` for ``torch.float32``."""
    return str(value.dtype).removeprefix("torch.")


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors whose name starts with ``prefix``, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def replace_module_(root: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` at the qualified ``name``."""
    parent, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(parent), leaf, module)
