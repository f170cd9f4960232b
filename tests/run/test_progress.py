from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.run import progress
from harness.run.progress import ProgressMonitor
from harness.spec import Status
from harness.task import Ended, Event


def prepared() -> Any:
    cells = [
        SimpleNamespace(cell=SimpleNamespace(id="s2q"), needs_quantizing=True),
        SimpleNamespace(cell=SimpleNamespace(id="fp"), needs_quantizing=False),
    ]
    guess = SimpleNamespace(work_s={"s2q": 30.0, "fp": 10.0})
    return SimpleNamespace(plan=SimpleNamespace(cells=cells), guess=guess)


def event(task: str, stage: str, fraction: float) -> Event:
    facts = {"stage": stage, "fraction": fraction, "text": "block 1"}
    return Event(task=task, name="progress", facts=facts)


def ended(task: str, status: Status, detail: str = "") -> Ended:
    return Ended(
        task=task, status=status, detail=detail, disk_full=False, log=Path("x.log"), seconds=3.0
    )


def test_the_whole_moves_with_the_weights_of_its_workers() -> None:
    with ProgressMonitor(prepared()) as monitor:
        monitor.started("s2q")
        monitor.started("fp")
        monitor.event(event("fp", "decode", 1.0))
        monitor.event(event("s2q", "quantize", 0.5))
        (whole, s2q, fp) = monitor._progress.tasks
        assert fp.completed == pytest.approx(0.93)
        assert s2q.completed == pytest.approx(0.3)
        assert whole.completed == pytest.approx(0.93 * 10 + 0.3 * 30)
        monitor.ended(ended("fp", Status.OK))
        assert monitor._progress.tasks[0].completed == pytest.approx(10 + 0.3 * 30)


def test_scoring_is_all_that_a_judge_does() -> None:
    with ProgressMonitor(prepared()) as monitor:
        monitor.started("judge--1")
        monitor.event(event("judge--1", "score", 0.25))
        assert monitor._progress.tasks[-1].completed == pytest.approx(0.25)


def test_without_a_terminal_every_end_is_a_line_and_long_stages_show_life(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_LINE_INTERVAL_S", 0.0)
    with ProgressMonitor(prepared()) as monitor:
        monitor.started("s2q")
        monitor.event(event("s2q", "quantize", 0.5))
        monitor.ended(ended("s2q", Status.OOM, "[Errno 12] too big"))
        monitor.ended(ended("fp", Status.OK))
    shown = capsys.readouterr().err.splitlines()
    assert shown == [
        "s2q: quantize, block 1 (30%)",
        "s2q: oom: [Errno 12] too big (log: x.log)",
        "fp: done in 3 s",
    ]
