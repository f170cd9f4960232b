"""What an executor is: it starts workers, hands their events over, and says how each ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from harness.task import Ended, Event, Task


class Executor(Protocol):
    """Runs tasks somewhere else."""

    def start(self, task: Task, *, log: Path, threads: int) -> None:
        """Start a worker."""

    def poll(self, timeout_s: float) -> list[Event | Ended]:
        """What happened, waiting at most so long for something to happen."""

    def stop(self) -> None:
        """End every worker now; what they published stays."""
