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
from torch.utils.weak import WeakIdKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence


class PeakTensors(TorchDispatchMode):
    """Counts the bytes of tensors that operations make, while entered, for as long as they live.

    Works on every device and sees what autograd keeps, gradients and temporaries of Python code;
    scratch memory within an operation is not seen.

    Attributes:
        live: Bytes alive now.
        peak: Most bytes alive at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation and count the storages that it made."""
        kwargs = kwargs or {}
        for value in _tensors((args, kwargs)):
            self._known.setdefault(value.untyped_storage(), 0)
        out = func(*args, **kwargs)
        for value in _tensors(out):
            self._add(value.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known[storage] = size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.live -= size


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Tensors in the arguments or results of an operation."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


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


def traced_peak(call: Callable[[], Any]) -> int:
    """Bytes that a call adds at its peak.

    Args:
        call: What is done; on meta tensors it costs no time and no memory.
    """
    with torch.no_grad(), FusedAttention(), PeakTensors() as memory:
        result = call()
    del result
    peak: int = memory.peak
    return peak
