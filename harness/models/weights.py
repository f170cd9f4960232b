"""What weight files hold, from their headers: dtypes, parameters, bytes; and files that are broken.

A header is read, never the weights: the first kilobytes of a safetensors file say what tensors
follow and where the file has to end.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
MAX_HEADER_BYTES = 100_000_000  # the bound of the safetensors library
POINTER_BYTES = 1024  # the git-lfs specification: a pointer file is smaller than this

DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""Floating-point types of safetensors that weights are run from, by torch's name."""


def width_of(kind: str) -> float:
    """Bytes of one value of a type of safetensors (``BF16``, ``F8_E4M3``, ``BOOL``)."""
    bits = re.search(r"\d+", kind)
    return int(bits[0]) / 8 if bits else 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """What one weight file says of itself.

    Attributes:
        tensors: Names.
        parameters: Numbers by safetensors' name of their type (``BF16``).
        size: Bytes of the file, of its values alone where it was not seen whole.
    """

    tensors: frozenset[str]
    parameters: Mapping[str, int]
    size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """What the files of one component hold.

    Attributes:
        parameters: Numbers by safetensors' name of their type.
        size: Bytes of the files.
    """

    parameters: Mapping[str, int] = field(default_factory=dict)
    size: int = 0

    @property
    def count(self) -> int:
        """Number of parameters."""
        return sum(self.parameters.values())

    @property
    def dtype(self) -> str:
        """Type of most parameters, by torch's name where it has one among ``DTYPES``."""
        if not self.parameters:
            return ""
        most = max(self.parameters.items(), key=lambda item: item[1])[0]
        return DTYPES.get(most, most)

    @classmethod
    def of(cls, headers: list[Header]) -> Weights:
        """The sum of several files."""
        total: Counter[str] = Counter()
        for header in headers:
            total.update(header.parameters)
        return cls(parameters=dict(total), size=sum(header.size for header in headers))


def refuse_pointer(path: Path) -> None:
    """Refuse what git-lfs leaves in place of a file that was not fetched.

    Raises:
        HarnessError: The file is such a pointer.
    """
    if path.stat().st_size >= POINTER_BYTES:
        return
    with path.open("rb") as file:
        start = file.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        raise HarnessError(
            f"'{path}' is a pointer of git-lfs, not the file itself",
            "run `git lfs install` and `git lfs pull` in the folder, or download the model again",
        )


def read_header(path: Path) -> Header:
    """Read the header of a safetensors file and hold the file's length against it.

    Raises:
        HarnessError: The file is a pointer of git-lfs, is cut, or is no safetensors file.
    """
    try:
        refuse_pointer(path)
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8:
                raise _cut(path, size, "bytes, which is less than a header")
            if not 2 <= length <= MAX_HEADER_BYTES:
                raise _foreign(path)
            if size < 8 + length:
                raise _cut(path, size, f"bytes, its header alone has {length}")
            raw = file.read(length)
    except OSError as cause:
        raise HarnessError(
            f"'{path}' cannot be read: {cause.strerror}", "check the file and its rights"
        ) from cause
    return parse_header(path, raw, size)


def parse_header(path: Path, raw: bytes, size: int) -> Header:
    """Take a header apart.

    Args:
        path: The file, for messages.
        raw: The header.
        size: Bytes of the file.

    Raises:
        HarnessError: It is none, or the file ends before its last tensor.
    """
    parameters: Counter[str] = Counter()
    try:
        content: dict[str, Any] = json.loads(raw)
        content.pop("__metadata__", None)
        end = max((int(tensor["data_offsets"][1]) for tensor in content.values()), default=0)
        for tensor in content.values():
            parameters[str(tensor["dtype"])] += math.prod(tensor["shape"])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as cause:
        raise _foreign(path) from cause
    whole = 8 + len(raw) + end
    if size < whole:
        raise _cut(path, size, f"bytes of the {whole} that its header names")
    if size > whole:
        raise HarnessError(
            f"'{path}' has {size - whole} bytes behind its last tensor",
            "download or copy the file again",
        )
    return Header(tensors=frozenset(content), parameters=dict(parameters), size=size)


def _foreign(path: Path) -> HarnessError:
    return HarnessError(
        f"'{path}' is no safetensors file: its header cannot be read",
        "download the file again; a web page saved in its place looks like this",
    )


def _cut(path: Path, size: int, whole: str) -> HarnessError:
    return HarnessError(
        f"'{path}' is cut: it has {size} {whole}", "download or copy the file again"
    )
