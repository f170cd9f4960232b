"""The tensor files of an artifact, written a shard at a time and read a tensor at a time.

One ``weights.safetensors`` where everything fits a shard, else ``weights-00001.safetensors`` and so
on, whose names the manifest holds. Reading takes a tensor's own bytes and no more: a file that is
mapped into memory would count, page by page, beside the tensors that were made from it.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from harness.errors import HarnessError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

WEIGHTS = "weights.safetensors"
SHARD_BYTES = 2 << 30
"""Most bytes of a file, a single larger tensor excepted; what writing holds beside the model."""

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
"""Names of the format (github.com/huggingface/safetensors, README) that layers here store."""

_LENGTH = 8  # bytes of the header's own length, at the start of a file


class ShardWriter:
    """Writes tensors in the order in which they come.

    Args:
        folder: Existing folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: list[str] = []
        self._held: dict[str, Tensor] = {}
        self._bytes = 0

    def add(self, name: str, value: Tensor) -> None:
        """Take a tensor, and write what was held if it no longer fits."""
        if self._held and self._bytes + value.nbytes > SHARD_BYTES:
            self._flush(f"weights-{len(self.files) + 1:05d}.safetensors")
        self._held[name] = value.detach().contiguous().cpu()
        self._bytes += value.nbytes

    def finish(self) -> tuple[str, ...]:
        """Write the rest; returns the names of the files in order."""
        several = bool(self.files)
        self._flush(f"weights-{len(self.files) + 1:05d}.safetensors" if several else WEIGHTS)
        return tuple(self.files)

    def _flush(self, name: str) -> None:
        save_file(self._held, self.folder / name)
        self.files.append(name)
        self._held, self._bytes = {}, 0


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """Where a tensor lies.

    Attributes:
        file: The file.
        start: First byte in it.
        shape: Its shape.
        dtype: Its dtype.
    """

    file: Path
    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class StoredTensors:
    """The tensors of an artifact by name. Opening reads headers and checks the files' sizes.

    Args:
        folder: Artifact folder.
        files: Names of its tensor files.
        shared: Names that stand for another tensor.

    Raises:
        HarnessError: A file is absent, cut, or no such file.
    """

    def __init__(self, folder: Path, files: Sequence[str], shared: Mapping[str, str]) -> None:
        self.folder = folder
        self._at = {k: v for name in files for k, v in _header(folder / name).items()}
        self._shared = dict(shared)
        self._held: dict[str, Tensor] = {}

    def names(self) -> list[str]:
        """Every name, also those that stand for another tensor."""
        return [*self._at, *self._shared]

    def place(self, name: str) -> StoredTensor:
        """Where a tensor lies.

        Raises:
            HarnessError: There is none of that name.
        """
        own = self._shared.get(name, name)
        if own not in self._at:
            raise damaged(self.folder, f"has no tensor '{name}'")
        return self._at[own]

    def get(self, name: str) -> Tensor:
        """Read a tensor; one that several names stand for is read once.

        Raises:
            HarnessError: There is none of that name, or its bytes cannot be read.
        """
        own = self._shared.get(name, name)
        if own in self._held:
            return self._held[own]
        found = _read(self.place(name))
        if own in self._shared.values():
            self._held[own] = found
        return found

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Read every tensor whose name starts with a prefix, by the rest of the name."""
        names = [name for name in self.names() if name.startswith(prefix)]
        return {name.removeprefix(prefix): self.get(name) for name in names}


def damaged(folder: Path, what: str) -> HarnessError:
    """The error about an artifact whose files do not hold what they should."""
    return HarnessError(f"artifact '{folder}' {what}", "copy it again whole, or quantize again")


def _header(file: Path) -> dict[str, StoredTensor]:
    """Tensors of a file by name, from its header."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(_LENGTH), "little")
            if not 2 <= length <= size - _LENGTH:
                raise damaged(file.parent, f"is damaged: '{file.name}' is cut or no such file")
            entries: dict[str, Any] = json.loads(stream.read(length))
        start = _LENGTH + length
        ends = [start + e["data_offsets"][1] for k, e in entries.items() if k != "__metadata__"]
        if size != max(ends, default=start):
            raise damaged(
                file.parent,
                f"is damaged: '{file.name}' has {size} bytes, its header says {max(ends)}",
            )
        return {
            name: StoredTensor(
                file=file,
                start=start + entry["data_offsets"][0],
                shape=tuple(entry["shape"]),
                dtype=_DTYPES[entry["dtype"]],
            )
            for name, entry in entries.items()
            if name != "__metadata__"
        }
    except OSError as cause:
        raise damaged(file.parent, f"lacks '{file.name}' ({cause.strerror})") from cause
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as cause:
        raise damaged(file.parent, f"is damaged: '{file.name}' has no sound header") from cause


def _read(at: StoredTensor) -> Tensor:
    """Read the bytes of a tensor into memory of its own."""
    raw = torch.empty(math.prod(at.shape) * at.dtype.itemsize, dtype=torch.uint8)
    view, done = raw.numpy().data, 0
    try:
        with at.file.open("rb", buffering=0) as stream:
            stream.seek(at.start)
            while done < len(view) and (count := stream.readinto(view[done:])):
                done += count
    except OSError as cause:
        raise damaged(at.file.parent, f"lacks '{at.file.name}' ({cause.strerror})") from cause
    if done < len(view):
        raise damaged(at.file.parent, f"is damaged: '{at.file.name}' is cut")
    return raw.view(at.dtype).reshape(at.shape)
