"""Files that are being written: locked, resumable, and named in one rename when they are whole."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from harness.errors import HarnessError, InfraError
from harness.store.durable import DISK_FULL, fsync_path, replace_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import FileIO
    from pathlib import Path

SPARE_BYTES = 256 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """Which bytes a part holds.

    Attributes:
        url: Address they come from.
        validator: What If-Range names them by; empty where the host gave nothing.
        total: Length of the file as announced; 0 where it was not.
        sha256: Of the file as announced; empty where it was not.
    """

    url: str
    validator: str
    total: int
    sha256: str


class Part:
    """The growing file of one target, locked against other processes while it is open."""

    def __init__(self, target: Path, file: FileIO) -> None:
        self.path, self.file = part_path(target), file
        self._about = self.path.with_name(f"{self.path.name}.json")
        self.version: Version | None = None
        if self._about.is_file():
            # Facts of a part are worth nothing when they cannot be read: it is fetched anew.
            with contextlib.suppress(ValueError, TypeError):
                self.version = Version(**json.loads(self._about.read_text(encoding="utf-8")))

    @property
    def size(self) -> int:
        """Bytes that are here."""
        return os.fstat(self.file.fileno()).st_size

    def begin(self, version: Version) -> None:
        """Throw the bytes away and hold those of another version from now on."""
        self.file.truncate(0)
        self.version = version
        replace_file(self._about, json.dumps(asdict(version)) + "\n")

    def discard(self) -> None:
        """Throw the bytes away."""
        self.file.truncate(0)
        self._about.unlink(missing_ok=True)
        self.version = None

    def append(self, chunk: bytes) -> None:
        """Write bytes at the end.

        Raises:
            InfraError: The disk is full.
        """
        rest = memoryview(chunk)
        try:
            while rest:  # an unbuffered write may take only some
                rest = rest[self.file.write(rest) :]
        except OSError as cause:
            if cause.errno not in DISK_FULL:
                raise
            hint = "free some space and type the same command again: it goes on from there"
            raise InfraError(f"the disk of '{self.path}' is full", hint) from cause

    def publish(self, target: Path) -> None:
        """Give the file its name."""
        os.fsync(self.file.fileno())
        self.path.replace(target)
        self._about.unlink(missing_ok=True)
        fsync_path(target.parent)


def part_bytes(target: Path) -> int:
    """Bytes of a file whose download was begun; 0 where none was."""
    path = part_path(target)
    return path.stat().st_size if path.is_file() else 0


def part_path(target: Path) -> Path:
    """Where a file grows."""
    return target.with_name(f"{target.name}.part")


@contextlib.contextmanager
def opened(target: Path) -> Iterator[Part]:
    """Open the part of a file, begun or not, for this process alone.

    Raises:
        HarnessError: Another process has it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    path = part_path(target)
    busy = HarnessError(f"'{path}' is being written by another process", "wait until it has ended")
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as cause:
            raise busy from cause
        # Between opening and locking the other process may have given the file its name.
        if not path.exists() or path.stat().st_ino != os.fstat(file.fileno()).st_ino:
            raise busy
        part = Part(target, file)
        try:
            yield part
        finally:
            if path.exists() and not part.size:
                part.discard()
                path.unlink()


def check_space(folder: Path, size: int, name: str) -> None:
    """Refuse to write what does not fit.

    Raises:
        InfraError: Less is free than ``size`` bytes and some to spare.
    """
    place = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(place).free
    if free < size + SPARE_BYTES:
        raise InfraError(
            f"'{name}' needs {size / 1e6:.0f} MB, and {place} has {free / 1e6:.0f} MB free",
            "free some, or choose another place: --folder FOLDER",
        )
