"""Rows over several devices: what is dealt out, what waits for what, and that it is one row."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.errors import UsageError
from harness.plan.cells import PlannedCell
from harness.run.parts import Node, Rows, dealt_out, nodes_of
from harness.spec import Cell, MethodSpec, Status
from harness.store import provenance
from harness.store.keys import Keyed
from harness.store.provenance import find_devices
from harness.task import CellTask, ClipTask, Ended, Event
from tests.fake_run import Quiet, fake_run
from tests.run.test_run import TOY, flags, place, published
from tests.test_task import GEN, MODEL, PROMPT

if TYPE_CHECKING:
    from harness.run.executors.base import Executor

__all__ = ["place"]

CLIPS = tuple(
    ClipTask(prompt=PROMPT, seed=i, noise_seed=i, clip=Keyed(key=f"{i}", inputs={}), reference="")
    for i in range(5)
)
METHOD = MethodSpec(name="s2q", label="s2q")
TASK = CellTask(
    id="row", model=MODEL, gen=GEN, method=METHOD, bits="w4a6", pool="p",
    artifact=Keyed(key="a", inputs={}), clips=CLIPS, scorers=(),
)  # fmt: skip


def planned(**more: Any) -> PlannedCell:
    class Identified(Cell):
        @property
        def id(self) -> str:
            return "row"

    cell = Identified(model=MODEL, method=METHOD, bits="w4a6", suite="s", gen=GEN, seeds=(0,))
    given = {"needs_quantizing": True, "missing_clips": 5, "missing_scores": 0, "pool": "pool--x",
             "waits_for": "fp", **more}  # fmt: skip
    return PlannedCell(cell=cell, facts=None, task=TASK, **given)  # type: ignore[arg-type]


def ended(task: str, status: Status = Status.OK, detail: str = "") -> Ended:
    return Ended(
        task=task, status=status, detail=detail, disk_full=False, log=Path(task), seconds=1.0
    )


def test_with_several_devices_a_row_is_quantized_before_its_reference_is_there() -> None:
    known = {"pool--x", "fp", "row"}
    first, rest = nodes_of(planned(), known=known, apart=True)
    assert first.task.id == "row--quantize"
    assert isinstance(first.task, CellTask)
    assert first.task.clips == ()
    assert (first.waits, first.must) == ({"pool--x"}, {"pool--x"})
    assert rest.task is TASK
    assert (rest.waits, rest.must) == ({"row--quantize", "fp"}, {"row--quantize"})
    assert (first.row, rest.row) == ("row", "row")


def test_with_one_device_a_row_is_one_task_and_waits_for_what_is_made_in_this_run() -> None:
    (node,) = nodes_of(planned(), known={"pool--x", "fp", "row"}, apart=False)
    assert (node.waits, node.must) == ({"pool--x", "fp"}, {"pool--x"})
    (node,) = nodes_of(planned(), known={"row"}, apart=True)
    assert (node.task, node.waits) == (TASK, set())


def test_every_clip_is_dealt_out_once_and_no_worker_is_started_for_none() -> None:
    node = Node(task=TASK, row="row", most=5)
    parts = dealt_out(node, 2)
    assert [part.task.id for part in parts] == ["row--1of2", "row--2of2"]
    clips = [c for p in parts for c in p.task.clips]  # type: ignore[union-attr]
    assert sorted(clip.seed for clip in clips) == [0, 1, 2, 3, 4]
    assert len(dealt_out(node, 9)) == 5
    assert dealt_out(Node(task=TASK, row="row", most=1), 4)[0].task is TASK


def test_the_parts_of_a_row_are_one_row_to_who_watches() -> None:
    rows, node = Rows(), Node(task=TASK, row="row", most=5)
    rows.expect(node)
    parts = dealt_out(node, 2)
    rows.deal_out(node, parts)
    assert rows.start("row--1of2")
    assert not rows.start("row--2of2")
    told = [
        rows.seen_as(Event(task=name, name="progress", facts={"fraction": share}))
        for name, share in (("row--1of2", 0.5), ("row--2of2", 0.1))
    ]
    assert [(e.task, e.facts["fraction"]) for e in told] == [("row", 0.25), ("row", 0.3)]
    assert rows.end(ended("row--2of2", Status.OOM, "too big")) is None
    whole = rows.end(ended("row--1of2"))
    assert whole is not None
    assert (whole.task, whole.status, whole.detail) == ("row", Status.OOM, "too big")


def test_a_row_whose_quantizing_fails_has_ended_when_the_rest_was_given_up() -> None:
    rows = Rows()
    first, rest = nodes_of(planned(), known={"fp", "row"}, apart=True)
    rows.expect(first)
    rows.expect(rest)  # none was started: their calibration could not be recorded
    assert rows.end(ended("row--quantize", Status.ERROR, "diverged")) is None
    whole = rows.end(ended("row", Status.ERROR, "diverged"))
    assert whole is not None
    assert (whole.task, whole.status) == ("row", Status.ERROR)


def test_devices_of_two_kinds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "cuda_names", lambda: ("H100", "H100", "A100"))
    assert [d.id for d in find_devices("cuda:0, cuda:1")] == ["cuda:0", "cuda:1"]
    assert [d.id for d in find_devices("cuda,cuda:1")] == ["cuda:0", "cuda:1"]
    for wanted, said in (
        ("cuda:1,cuda:2", "a H100 and 'cuda:2' a A100"),
        ("cuda:0,cpu", "one kind of device"),
        ("cuda:0,cuda:0", "named twice"),
        ("cuda:0,tpu", "'tpu' is unknown"),
        (",", "is unknown"),
    ):
        with pytest.raises(UsageError, match=said):
            find_devices(wanted)
    assert len(find_devices("cpu,cpu,cpu")) == 3


def test_a_run_on_two_devices_uses_both_and_makes_each_clip_once(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.run.executors.local import LocalExecutor

    monkeypatch.setenv("FAKE_CLIP_S", "0.2")
    monitor = Quiet()
    busy: dict[str, set[str]] = {}
    most: list[int] = []
    start: Any = LocalExecutor.start

    def watched(self: Executor, task: Any, *, log: Path, threads: int, device: str) -> None:
        most.append(len(self._running) + 1)  # type: ignore[attr-defined]
        busy.setdefault(task.id, set()).add(device)
        start(self, task, log=log, threads=threads, device=device)

    monkeypatch.setattr(LocalExecutor, "start", watched)
    run, prepared = fake_run(flags(place, TOY, device="cpu,cpu"), monitor=monitor)
    assert prepared.plan.places == ("cpu", "cpu")
    assert {cell.status for cell in run.cells} == {Status.OK}
    assert max(most) == 2
    toy = "model--tests.doubles.Toy--w4a6"
    assert {f"{toy}--quantize", f"{toy}--1of2", f"{toy}--2of2"} <= busy.keys()
    assert len(published("clip")) == len(set(published("clip"))) == 6
    assert monitor.seen.count(f"start {toy}") == monitor.seen.count(f"ok {toy}") == 1
    assert not any("of2" in line for line in monitor.seen)
