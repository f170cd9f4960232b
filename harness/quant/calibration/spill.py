"""Block inputs on disk, so that the memory of a calibration does not grow with its samples.

The streams of a sample are a file for each block; its other arguments, which are the same for every
block, are stored once, each tensor under the digest of its content, so that what samples have in
common (rotary embeddings, the text of a prompt) is stored once as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

import torch
from safetensors.torch import load_file, save_file

from harness.models.block_input import BlockInput, Sample
from harness.quant.calibration.factors import content_digest, expand_factors, factor
from harness.store.durable import fsync_path
from harness.store.nest import flatten, unflatten

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from torch import Tensor


class KeptArguments(dict[str, Any]):
    """Arguments of a block as they were read, which knows where they are kept.

    Attributes:
        told: What ``FixedArguments.put`` gave for them.
    """

    told: Any = None


class FixedArguments:
    """The arguments of blocks that no block changes, each tensor once.

    Args:
        folder: Made when something is put there.
        device: Where tensors go when they are read.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.folder, self.device = folder, device

    def put(self, arguments: dict[str, Any]) -> Any:
        """Keep arguments; what was read from here is known and not written again.

        Returns:
            Plain facts by which ``get`` finds them.

        Raises:
            TypeError: An argument is neither tensor, number, text nor a nest of those.
        """
        if isinstance(arguments, KeptArguments) and arguments.told is not None:
            return arguments.told
        self.folder.mkdir(exist_ok=True)
        tensors: dict[str, Tensor] = {}
        nest = flatten(_factored(arguments), tensors)
        return {"nest": nest, "tensors": {n: self._keep(t) for n, t in tensors.items()}}

    def get(self, told: Any) -> KeptArguments:
        """Read arguments back, to the bit."""
        tensors = {
            name: load_file(self.folder / f"{key}.safetensors", device=str(self.device))["value"]
            for name, key in told["tensors"].items()
        }
        found = KeptArguments(_expanded(unflatten(told["nest"], tensors, self.device)))
        found.told = told
        return found

    def _keep(self, value: Tensor) -> str:
        told = f"{value.dtype}{list(value.shape)}".encode()
        key = content_digest(value, told)[:40]
        path = self.folder / f"{key}.safetensors"
        if not path.exists():
            temporary = path.with_suffix(".part")
            save_file({"value": value}, temporary)
            fsync_path(temporary)
            temporary.replace(path)
        return key


class SpilledInputs(Sequence[BlockInput]):
    """Samples of one block, each read from its file when it is asked for.

    Args:
        folder: Existing folder of its own.
        device: Where tensors go when they are read.
        fixed: Where the arguments beside the streams are; None keeps them in the folder.
        read: Called whenever a sample is read.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        *,
        fixed: FixedArguments | None = None,
        read: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder = folder
        self._device = device
        self._fixed = fixed or FixedArguments(folder / "fixed", device)
        self._read = read
        self._told: list[dict[str, Any]] = []

    def extend(self, inputs: Iterable[BlockInput]) -> SpilledInputs:
        """Write samples, one in memory at a time.

        Raises:
            TypeError: An argument of the block is neither tensor, number, text nor a nest of those.
        """
        for given in inputs:
            tensors: dict[str, Tensor] = {}
            streams = flatten(given.streams, tensors)
            fixed = self._fixed.put(given.fixed)
            save_file(tensors, self._path(len(self._told)))
            told = {"sample": tuple(given.sample), "rows": given.rows}
            self._told.append({**told, "streams": streams, "fixed": fixed})
        return self

    def facts(self) -> list[dict[str, Any]]:
        """What ``restore`` needs beside the files, plain; the files are forced to the disk."""
        for i in range(len(self._told)):
            fsync_path(self._path(i))
        return list(self._told)

    def restore(self, facts: Iterable[dict[str, Any]]) -> SpilledInputs:
        """Take over the files that another process left in the folder."""
        self._told = list(facts)
        return self

    def clear(self) -> None:
        """Delete the files; the samples are gone."""
        for i in range(len(self._told)):
            self._path(i).unlink()
        self._told.clear()

    def __len__(self) -> int:
        return len(self._told)

    @overload
    def __getitem__(self, index: int) -> BlockInput: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[BlockInput]: ...
    def __getitem__(self, index: int | slice) -> BlockInput | Sequence[BlockInput]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index < 0:
            index += len(self)
        told = self._told[index]
        tensors = load_file(self._path(index), device=str(self._device))
        self._read()
        return BlockInput(
            sample=Sample(*told["sample"]),
            streams=unflatten(told["streams"], tensors, self._device),
            fixed=self._fixed.get(told["fixed"]),
            rows=told["rows"],
        )

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:05d}.safetensors"


_FACTORED = "factored tensor"


def _factored(value: Any) -> Any:
    """The nest with every tensor cut down to the rows that differ."""
    if isinstance(value, torch.Tensor):
        rest, steps = factor(value.detach())
        return {_FACTORED: rest, "steps": steps} if steps else value
    if isinstance(value, dict):
        return {k: _factored(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        found = [_factored(v) for v in value]
        return tuple(found) if isinstance(value, tuple) else found
    return value


def _expanded(value: Any) -> Any:
    """Undo ``_factored``."""
    if isinstance(value, dict):
        if _FACTORED in value:
            return expand_factors(value[_FACTORED], value["steps"])
        return {k: _expanded(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        found = [_expanded(v) for v in value]
        return tuple(found) if isinstance(value, tuple) else found
    return value
