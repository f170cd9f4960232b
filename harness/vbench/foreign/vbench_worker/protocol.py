"""What goes in and out: a job file, and events as JSON lines on stdout."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

SCHEMA = 1
SHARED, OFFICIAL = "shared", "official"
FLOAT32, BFLOAT16 = "float32", "bfloat16"
PROGRESS_INTERVAL_S = 0.2


class JobError(Exception):
    """A job that this worker cannot read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Want:
    """One value that is asked for.

    Attributes:
        key: Under which the driver keeps the value.
        auxiliary: The entry of the official prompt list for this dimension, where it has one.
    """

    dimension: str
    key: str
    auxiliary: dict[str, Any] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipJob:
    """One file and the values asked of it.

    Attributes:
        id: Unique within the job; a folder name.
        index: Which of the clips of this prompt it is, as the official file names count.
    """

    id: str
    path: Path
    prompt: str
    index: int
    wants: tuple[Want, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """All that one worker is to do.

    Attributes:
        scorer: ``shared`` or ``official``.
        device: As torch names it.
        precision: ``float32``, or ``bfloat16`` for the approximate mode.
        batch: Frames or pairs per forward pass; 1 leaves every official loop as it is.
        weights: The folder that the official package calls ``VBENCH_CACHE_DIR``.
        scratch: Where links with the official names are made.
        parent: The process whose end ends this one.
    """

    scorer: str
    device: str
    threads: int
    precision: str
    batch: int
    weights: Path
    scratch: Path
    parent: int
    clips: tuple[ClipJob, ...]

    @classmethod
    def read(cls, path: Path) -> Job:
        """The job in a file.

        Raises:
            JobError: If it is of another schema or asks for a scorer or precision unknown here.
        """
        data = json.loads(path.read_text(encoding="utf-8"))
        for field, known in (
            ("schema", (SCHEMA,)),
            ("scorer", (SHARED, OFFICIAL)),
            ("precision", (FLOAT32, BFLOAT16)),
        ):
            if data[field] not in known:
                raise JobError(f"{field} {data[field]!r} is none of {known}")
        return cls(
            scorer=data["scorer"],
            device=data["device"],
            threads=data["threads"],
            precision=data["precision"],
            batch=data["batch"],
            weights=Path(data["weights"]),
            scratch=Path(data["scratch"]),
            parent=data["parent"],
            clips=tuple(_clip(c) for c in data["clips"]),
        )

    @property
    def wants(self) -> int:
        """How many values it asks for."""
        return sum(len(c.wants) for c in self.clips)


def _clip(data: dict[str, Any]) -> ClipJob:
    return ClipJob(
        id=data["id"],
        path=Path(data["path"]),
        prompt=data["prompt"],
        index=data["index"],
        wants=tuple(
            Want(dimension=w["dimension"], key=w["key"], auxiliary=w.get("auxiliary"))
            for w in data["wants"]
        ),
    )


@dataclass(kw_only=True)
class Events:
    """The line to the run."""

    out: IO[str]
    last: float = 0.0

    def send(self, event: str, **facts: Any) -> None:
        """Write one event.

        Raises:
            ValueError: If a fact is not a finite number; JSON has no such thing.
        """
        self.out.write(json.dumps({"event": event, **facts}, allow_nan=False) + "\n")
        self.out.flush()

    def progress(self, fraction: float, text: str) -> None:
        """Say how far the scoring is, a few times a second at most."""
        if fraction >= 1 or time.monotonic() - self.last >= PROGRESS_INTERVAL_S:
            self.last = time.monotonic()
            self.send("progress", stage="score", fraction=round(fraction, 4), text=text)


def one_line(error: BaseException) -> str:
    """An exception in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def is_oom(error: BaseException) -> bool:
    """Whether memory ran out, on the host or on the device."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(error, RuntimeError):
        return False
    # The CPU allocator has no exception class of its own.
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
