"""Progress with the time left: bars on a terminal, a line for each thing that ended elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from harness.score.vbench_stage import TASK as JUDGE
from harness.spec import Status

if TYPE_CHECKING:
    from harness.plan.prepared import Prepared
    from harness.task import Ended, Event

# Share of a worker's bar that each stage fills; in a cell that quantizes, that takes longest.
_STAGES = {
    "encode": (0.0, 1.0),
    "record": (0.0, 1.0),
    "quantize": (0.0, 0.6),
    "verify": (0.6, 0.62),
    "generate": (0.62, 0.9),
    "decode": (0.9, 0.95),
    "score": (0.95, 1.0),
    "measure": (0.0, 1.0),
}
_STAGES_WITHOUT_QUANTIZING = {
    "generate": (0.0, 0.85),
    "decode": (0.85, 0.93),
    "score": (0.93, 1.0),
}
_STAGES_OF_A_JUDGE = {"score": (0.0, 1.0)}


_LINE_INTERVAL_S = 60.0


class ProgressMonitor:
    """Shows a run while it works; on stderr, so that stdout is the table alone.

    Args:
        prepared: The plan, whose estimates weigh the bars.
    """

    def __init__(self, prepared: Prepared) -> None:
        self.console = Console(stderr=True)
        self.work_s = prepared.guess.work_s
        self._quantizing = {c.cell.id for c in prepared.plan.cells if c.needs_quantizing}
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        self._bars: dict[str, TaskID] = {}
        self._shares: dict[str, float] = {}
        self._overall: TaskID | None = None
        self._said: dict[str, float] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        if self.work_s:
            total = sum(self.work_s.values())
            self._overall = self._progress.add_task("all rows", total=total)
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def started(self, task: str) -> None:
        """Show a bar for a worker."""
        self._bars[task] = self._progress.add_task(f"{task}: starting", total=1.0)

    def event(self, event: Event) -> None:
        """Move the bar."""
        if event.name != "progress":
            return
        stage = str(event.facts["stage"])
        stages = _STAGES if event.task in self._quantizing else _STAGES_WITHOUT_QUANTIZING
        if event.task.startswith(JUDGE):
            stages = _STAGES_OF_A_JUDGE
        start, end = stages.get(stage, _STAGES[stage])
        share = start + (end - start) * min(1.0, float(event.facts["fraction"]))
        self._shares[event.task] = max(share, self._shares.get(event.task, 0.0))
        text = f"{event.task}: {stage}, {event.facts['text']}"
        if not self.console.is_terminal:
            self._say_now_and_then(event.task, f"{text} ({share:.0%})")
        self._progress.update(
            self._bars[event.task], completed=self._shares[event.task], description=text
        )
        self._update_overall()

    def ended(self, ended: Ended) -> None:
        """Say how a worker ended."""
        if ended.task in self._bars:
            self._progress.remove_task(self._bars.pop(ended.task))
        self._shares[ended.task] = 1.0
        self._update_overall()
        if ended.status is Status.OK:
            self._say(f"{ended.task}: done in {ended.seconds:.0f} s")
        else:
            self._say(f"{ended.task}: {ended.status}: {ended.detail} (log: {ended.log})")

    def _update_overall(self) -> None:
        if self._overall is not None:
            done = sum(self._shares.get(name, 0.0) * s for name, s in self.work_s.items())
            self._progress.update(self._overall, completed=done)

    def _say_now_and_then(self, task: str, text: str) -> None:
        """A line a minute for each worker: enough for a log to show that it lives."""
        last = self._said.setdefault(task, time.monotonic())
        if time.monotonic() - last >= _LINE_INTERVAL_S:
            self._said[task] = time.monotonic()
            self._say(text)

    def _say(self, text: str) -> None:
        if self.console.is_terminal:
            self._progress.console.print(text, highlight=False, markup=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)
