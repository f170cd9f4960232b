"""What an executor is: it starts workers, hands their events over, and says how each ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from harness.spec import Status
    from harness.task import Task


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """A line from a worker.

    Attributes:
        task: Id of the task.
        name: ``progress``, ``clip`` or ``stage``.
        facts: What the line says besides.
    """

    task: str
    name: str
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """How a worker ended.

    Attributes:
        detail: One line; empty for ``ok``.
        disk_full: Whether the cause is a full disk, which stops the run.
        log: What it printed.
        seconds: Wall time from start to end.
    """

    task: str
    status: Status
    detail: str
    disk_full: bool
    log: Path
    seconds: float


class Executor(Protocol):
    """Runs tasks somewhere else."""

    def start(self, task: Task, *, log: Path, threads: int) -> None:
        """Start a worker."""

    def poll(self, timeout_s: float) -> list[Event | Ended]:
        """What happened, waiting at most so long for something to happen."""

    def stop(self) -> None:
        """End every worker now; what they published stays."""
