"""What an executor is: it starts workers, hands their events over, and says how each ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from harness.task import Ended, Event, Task


class Executor(Protocol):
    """Runs tasks somewhere else."""

    def start(self, task: Task, *, log: Path, threads: int, device: str = "") -> None:
        """Start a worker.

        Args:
            task: What it does.
            log: Where goes what it prints.
            threads: Threads it computes with.
            device: Where it computes; empty for the executor's own choice.
        """

    def poll(self, timeout_s: float) -> list[Event | Ended]:
        """What happened, waiting at most so long for something to happen."""

    def stop(self) -> None:
        """End every worker now; what they published stays."""
