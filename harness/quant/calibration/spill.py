"""Block inputs on disk, so that the memory of a calibration does not grow with its samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.models.block_input import BlockInput

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from harness.models.block_input import Sample


class SpilledInputs(Sequence[BlockInput]):
    """Samples of one block, each read from its file when it is asked for.

    Args:
        folder: Existing folder of its own.
        device: Where tensors go when they are read.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._folder = folder
        self._device = device
        self._facts: list[tuple[Sample, int, dict[str, Any], dict[str, Any]]] = []

    def extend(self, inputs: Iterable[BlockInput]) -> SpilledInputs:
        """Write samples, one in memory at a time.

        Raises:
            TypeError: An argument of the block is neither tensor, number, text nor a nest of those.
        """
        for given in inputs:
            tensors: dict[str, Tensor] = {}
            streams, fixed = _encode(given.streams, tensors), _encode(given.fixed, tensors)
            save_file(tensors, self._path(len(self._facts)))
            self._facts.append((given.sample, given.rows, streams, fixed))
        return self

    def clear(self) -> None:
        """Delete the files; the samples are gone."""
        for i in range(len(self._facts)):
            self._path(i).unlink()
        self._facts.clear()

    def __len__(self) -> int:
        return len(self._facts)

    @overload
    def __getitem__(self, index: int) -> BlockInput: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[BlockInput]: ...
    def __getitem__(self, index: int | slice) -> BlockInput | Sequence[BlockInput]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index < 0:
            index += len(self)
        sample, rows, streams, fixed = self._facts[index]
        tensors = load_file(self._path(index), device=str(self._device))
        return BlockInput(
            sample=sample,
            streams=_decode(streams, tensors),
            fixed=_decode(fixed, tensors),
            rows=rows,
        )

    def _path(self, index: int) -> Path:
        return self._folder / f"{index:05d}.safetensors"


def _encode(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Replace every tensor of a nest by its name, and keep it under that name."""
    if isinstance(value, Tensor):
        name = f"t{len(tensors)}"
        # a copy: safetensors refuses tensors that share memory, as branches of a batch do
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": {k: _encode(v, tensors) for k, v in value.items()}}
    if isinstance(value, tuple | list):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_encode(v, tensors) for v in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"plain": value}
    raise TypeError(f"a block got a {type(value).__name__}, which cannot be kept on disk")


def _decode(value: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    (kind, held), *_ = value.items()
    if kind == "tensor":
        return tensors[held]
    if kind == "dict":
        return {k: _decode(v, tensors) for k, v in held.items()}
    if kind == "plain":
        return held
    items = [_decode(v, tensors) for v in held]
    return tuple(items) if kind == "tuple" else items
