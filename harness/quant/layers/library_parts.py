"""Linears of quantization libraries, taken apart into plain tensors and put together again.

Each library's own serialisation is used: what it would write into a checkpoint is what the artifact
holds. Nothing here quantizes.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from harness.quant.layers.layers import under

if TYPE_CHECKING:
    from collections.abc import Mapping

JSON = dict[str, Any]


class LibraryParts(Protocol):
    """How one library's linears are stored."""

    @property
    def codes(self) -> tuple[str, ...]:
        """Names that the tensor of weight codes can have."""

    def take_apart(self, linear: nn.Module) -> tuple[JSON, dict[str, Tensor]]:
        """Facts and tensors of a quantized linear."""

    def put_together(
        self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor], shape: tuple[int, int]
    ) -> nn.Module:
        """Undo ``take_apart``; ``shape`` is ``(out_features, in_features)``."""


def parts_of(library: str) -> LibraryParts:
    """How linears of a library are stored.

    Raises:
        ValueError: The library is not one this version knows.
    """
    if library not in _PARTS:
        raise ValueError(f"unknown library {library!r}; known: {sorted(_PARTS)}")
    return _PARTS[library]


class _TorchAO:
    """``nn.Linear`` whose weight is one of torchao's tensor subclasses."""

    codes = ("weight.qdata",)

    def take_apart(self, linear: nn.Module) -> tuple[JSON, dict[str, Tensor]]:
        from torchao.prototype.safetensors import safetensors_support

        parts, about = safetensors_support.flatten_tensor_state_dict(
            {"linear.weight": linear.weight}
        )
        tensors = {f"weight.{k}": v for k, v in under("linear._weight_", parts).items()}
        return {"weight": json.loads(about["linear.weight"])}, tensors | _bias(linear)

    def put_together(
        self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor], shape: tuple[int, int]
    ) -> nn.Module:
        from torchao.prototype.safetensors import safetensors_support

        linear = _empty(shape, tensors)
        parts = {f"linear._weight_{k}": v for k, v in under("weight.", tensors).items()}
        about = {"linear.weight": json.dumps(facts["weight"]), "tensor_names": '["linear.weight"]'}
        whole, _ = safetensors_support.unflatten_tensor_state_dict(parts, about)
        linear.weight = nn.Parameter(whole["linear.weight"], requires_grad=False)
        return linear


class _Quanto:
    """``optimum.quanto.nn.QLinear``, frozen."""

    codes = ("weight._data", "weight._data._data")

    def take_apart(self, linear: nn.Module) -> tuple[JSON, dict[str, Tensor]]:
        facts = {"weights": getattr(linear, "weight_qtype").name}  # noqa: B009 (no attribute of Module)
        return facts, linear.state_dict()

    def put_together(
        self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor], shape: tuple[int, int]
    ) -> nn.Module:
        from optimum.quanto import requantize

        # Its loader walks the children of a model, so that a linear has to be one.
        model = nn.Sequential(OrderedDict(linear=_empty(shape, tensors, tensors["weight._scale"])))
        state = {f"linear.{name}": value for name, value in tensors.items()}
        widths = {"linear": {"weights": facts["weights"], "activations": "none"}}
        requantize(model, state, widths, device=torch.device("cpu"))
        return model.get_submodule("linear").requires_grad_(False)


class _BitsAndBytes:
    """``bitsandbytes.nn.Linear4bit``, quantized."""

    codes = ("weight",)

    def take_apart(self, linear: nn.Module) -> tuple[JSON, dict[str, Tensor]]:
        return {"compute_dtype": str(linear.compute_dtype).removeprefix("torch.")}, dict(
            linear.state_dict()
        )

    def put_together(
        self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor], shape: tuple[int, int]
    ) -> nn.Module:
        from bitsandbytes.nn import Linear4bit, Params4bit

        linear: Any = Linear4bit(
            shape[1], shape[0], bias="bias" in tensors, quant_type="nf4", device="meta",
            compute_dtype=getattr(torch, facts["compute_dtype"]),
        )  # fmt: skip
        linear.weight = Params4bit.from_prequantized(
            tensors["weight"], under("weight.", tensors), device="cpu", module=linear
        )
        if "bias" in tensors:
            linear.bias = nn.Parameter(tensors["bias"], requires_grad=False)
        stay_plain_(linear)
        return linear


def stay_plain_(linear: Any) -> None:
    """Keep a bitsandbytes linear in its stored form on every processor.

    On one with AVX512-BF16 its first call would pack the weights anew, round their scales to
    bfloat16 and multiply in bfloat16 whatever the model's dtype: no longer what was saved, and
    another result than on the next machine.
    """
    linear.support_avx512bf16_for_cpu = False


def _empty(
    shape: tuple[int, int], tensors: Mapping[str, Tensor], like: Tensor | None = None
) -> nn.Linear:
    """A linear without a weight, with the stored bias."""
    dtype = None if like is None else like.dtype
    linear = nn.Linear(
        shape[1], shape[0], bias="bias" in tensors, device="meta", dtype=dtype
    ).requires_grad_(False)
    if "bias" in tensors:
        linear.bias = nn.Parameter(tensors["bias"], requires_grad=False)
    return linear


def _bias(linear: nn.Module) -> dict[str, Tensor]:
    bias = getattr(linear, "bias", None)
    return {} if bias is None else {"bias": bias.detach()}


_PARTS: dict[str, LibraryParts] = {
    "torchao": _TorchAO(),
    "optimum-quanto": _Quanto(),
    "bitsandbytes": _BitsAndBytes(),
}
