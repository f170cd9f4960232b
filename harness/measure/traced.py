"""Peak memory of tensor work by counting storages: exact, and on the meta device without any work.

What is counted is every storage that an operator returns, from its making until it is freed. What
kernels use inside themselves is not seen; it is small in all operators that transformers are made
of, once the attention's scores are never written out.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class TracedMemory(TorchDispatchMode):
    """Counts the bytes of storages that come into being while it is active.

    Attributes:
        live: Bytes of those that are alive.
        peak: Most that ``live`` ever was.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self._known: dict[int, int] = {}

    def known(self, tensors: Sequence[torch.Tensor]) -> TracedMemory:
        """Leave out storages that were there before, so that views of them count nothing."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._known[storage._cdata] = 0
        return self

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the operator and take its outputs into account."""
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf)
        return out

    def _see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        place = storage._cdata
        if place in self._known:
            return
        size = storage.nbytes()
        self._known[place] = size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, place)

    def _free(self, place: int) -> None:
        self.live -= self._known.pop(place, 0)


class FusedAttention(TorchFunctionMode):
    """Stands for attention kernels that never write out the scores; computes nothing.

    For tracing on the meta device, where torch falls back to an attention that does.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Replace scaled dot-product attention by its output's shape."""
        if func is functional.scaled_dot_product_attention:
            given = {**dict(zip(("query", "key", "value"), args, strict=False)), **(kwargs or {})}
            query, value = given["query"], given["value"]
            return query.new_empty((*query.shape[:-1], value.shape[-1]))
        return func(*args, **(kwargs or {}))


def traced_peak(call: Callable[[], Any], held: Sequence[torch.Tensor] = ()) -> int:
    """Bytes that a call adds at its peak.

    Args:
        call: What is done; on meta tensors it costs no time and no memory.
        held: Tensors that were there before.
    """
    with torch.no_grad(), FusedAttention(), TracedMemory().known(held) as memory:
        result = call()
    del result
    peak: int = memory.peak
    return peak
