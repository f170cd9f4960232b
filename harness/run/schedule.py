"""The schedule of a run: its tasks, started when what they wait for has ended."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from harness.errors import InfraError
from harness.generate.text import EMPTY
from harness.plan.plan import plan_measuring, plan_texts
from harness.run.collect import Collector, Ending
from harness.run.folder import UNFINISHED, describe_run, standing_of
from harness.run.parts import Node, Rows, dealt_out, nodes_of
from harness.score.vbench_stage import TASK, Docket, judge_tasks
from harness.spec import Record, Status
from harness.store.durable import DISK_FULL
from harness.store.provenance import cores
from harness.store.records import write_run
from harness.task import Event, TextTask

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.plan.cells import PlannedCell
    from harness.plan.prepared import Prepared
    from harness.run.executors.base import Executor
    from harness.store.store import Store
    from harness.task import Ended, Task

POLL_S = 0.2
TROUBLE = "trouble"  # the event by which a worker tells of a score that it could not make


class Monitor(Protocol):
    """Somebody who watches a run."""

    def started(self, task: str) -> None:
        """A worker was started."""

    def event(self, event: Event) -> None:
        """A worker said something."""

    def ended(self, ended: Ended) -> None:
        """A worker ended."""


@dataclass(kw_only=True)
class Schedule:
    """The tasks of a run and how far they are."""

    prepared: Prepared
    store: Store
    monitor: Monitor
    executor: Executor
    command: list[str]
    endings: dict[str, Ended] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)
    collected: dict[str, list[Record]] = field(default_factory=dict)
    docket: Docket | None = None
    troubles: dict[str, tuple[Status, str]] = field(default_factory=dict)
    last_word: dict[str, float] = field(default_factory=dict)
    rows: Rows = field(default_factory=Rows)
    devices: dict[str, str] = field(default_factory=dict)

    def make_cells(self) -> dict[str, Ending]:
        """Run texts, pools and cells, each when what it waits for has ended."""
        plan = self.prepared.plan
        todo = {c.cell.id: c for c in plan.cells if not c.done}
        nodes = list(self._nodes(todo))
        waiting = {node.task.id: node for node in nodes}
        for node in nodes:
            self.rows.expect(node)
        if todo:
            self._leave_standing()
        while waiting or self.running:
            self._start_ready(waiting)
            self._poll()
        return {c.cell.id: self._ending(c) for c in plan.cells}

    def _start_ready(self, waiting: dict[str, Node]) -> None:
        plan = self.prepared.plan
        ready = [node for node in waiting.values() if node.waits <= self.endings.keys()]
        for node in [n for n in ready if self._broken(n) is not None]:
            ready.remove(node)
            del waiting[node.task.id]
            self._give_up(node)
        # The longest first: then the last worker to end is a short one.
        ready.sort(key=lambda n: (bool(n.waits - n.must), -self._work_s(n.row)))
        free = plan.jobs - len(self.running)
        for place, node in enumerate(ready[:free]):
            del waiting[node.task.id]
            # What nothing else is ready for is dealt out, the first rows a worker more.
            share = -(-(free - place) // len(ready[place:])) if plan.spreads else 1
            parts = dealt_out(node, share)
            self.rows.deal_out(node, parts)
            for part in parts:
                self._start(part.task, plan.experiment.execution.threads)
            free -= len(parts) - 1

    def _nodes(self, todo: dict[str, PlannedCell]) -> Iterator[Node]:
        """Texts, recordings and rows with what each waits for."""
        plan = self.prepared.plan
        texts = {task.model.name: {name} for name, task in plan.texts.items()}
        for name, task in plan.texts.items():
            yield Node(task=task, row=name)
        for name, pool in plan.pools.items():
            needs = texts.get(pool.model.name, set())
            yield Node(task=pool, row=name, waits=needs, must=needs)
        known = plan.pools.keys() | todo.keys()
        for cell in todo.values():
            needs = texts.get(cell.cell.model.name, set())
            for node in nodes_of(cell, known=known, apart=len(plan.devices) > 1):
                yield replace(node, waits=node.waits | needs, must=node.must | needs)

    def _broken(self, node: Node) -> Ended | None:
        """How that ended without which a task cannot be done; None where all went well.

        A row can do without the clips of another, but not where full precision itself diverges.
        """
        ends = [self.endings[name] for name in sorted(node.must)]
        lost = [ended for ended in ends if ended.status is not Status.OK]
        others = [self.endings[name] for name in sorted(node.waits - node.must)]
        lost += [ended for ended in others if ended.status is Status.DIVERGED]
        return next(iter(lost), None)

    def _work_s(self, name: str) -> float:
        return self.prepared.guess.work_s.get(name, 0.0)

    def _give_up(self, node: Node) -> None:
        broken, plan = self._broken(node), self.prepared.plan
        assert broken is not None
        detail = broken.detail
        if broken.task in plan.texts:
            detail = f"encoding the prompts failed: {detail}"
        elif broken.task in plan.pools:
            detail = f"recording the calibration failed: {detail}"
        elif broken.task not in node.must:
            detail = f"'{broken.task}' diverged: {detail}"
        self._end(replace(broken, task=node.task.id, detail=detail, disk_full=False, seconds=0.0))

    def _start(self, task: Task, threads: int) -> None:
        log = self.prepared.folder / "logs" / f"{task.id}.log"
        device = self._free_device()
        self.executor.start(task, log=log, threads=threads, device=device)
        self.devices[task.id] = device
        self.running.add(task.id)
        self.last_word[task.id] = time.monotonic()
        if self.rows.start(task.id):
            self.monitor.started(self.rows.rows.get(task.id, task.id))

    def _free_device(self) -> str:
        """The device that has the fewest of its places taken; one worker a place."""
        taken = Counter(self.devices.values())
        places = Counter(self.prepared.plan.places)
        return min(places, key=lambda device: taken[device] / places[device])

    def _poll(self) -> None:
        for found in self.executor.poll(POLL_S):
            if isinstance(found, Event):
                event = self.rows.seen_as(found)
                self._hear(event)
                self.monitor.event(event)
                continue
            self.running.discard(found.task)
            del self.devices[found.task]
            self._end(found)
            if found.disk_full:
                raise _disk_full(found.task, found.detail)

    def _end(self, found: Ended) -> None:
        """A task has ended; a row has when its last part has."""
        self.endings[found.task] = found
        row = self.rows.end(found)
        if row is None:
            return
        self.endings[row.task] = row
        self.monitor.ended(row)
        if row.task in self._cells:
            self._leave_standing()

    def _hear(self, event: Event) -> None:
        """Keep what a worker said of scores that it made or could not make.

        A judge's time since its value before is what the value took.
        """
        if event.name == TROUBLE and event.task in self._cells:
            told = (Status(event.facts["status"]), str(event.facts["detail"]))
            self.troubles |= dict.fromkeys(event.facts["keys"], told)
        if self.docket is None or not event.task.startswith(TASK) or event.name == "progress":
            return
        now = time.monotonic()
        seconds, self.last_word[event.task] = now - self.last_word[event.task], now
        try:
            self.docket.heard(event.name, event.facts, seconds=seconds)
        except OSError as cause:
            if cause.errno in DISK_FULL:
                raise _disk_full(event.task, str(cause)) from cause
            raise

    def judge(self, endings: dict[str, Ending]) -> tuple[dict[str, tuple[Status, str]], list[str]]:
        """Have the clips judged that lack scores; a judge that dies costs its values only.

        A row that failed is not judged: its place in the table says that it failed.

        Returns:
            Status and reason of values that could not be made, by score key, and the failures.
        """
        plan = self.prepared.plan
        broken = [f"{n}: {why}" for n, (s, why) in plan.vbench.lost.items() if s is Status.ERROR]
        broken += self._scoring_failures()
        whole = [c.task for c in plan.cells if endings[c.cell.id].status is Status.OK]
        missing = plan.vbench.missing(self.store, whole)
        if plan.vbench.judge is None or not missing:
            return self.troubles, broken
        self.docket = Docket(judge=plan.vbench.judge, store=self.store)
        scratch = self.store.scratch("judge")
        try:
            waiting = judge_tasks(self.docket, missing, shards=plan.judges, scratch=scratch)
            tasks = [task.id for task in waiting]
            while waiting or self.running:
                while waiting and len(self.running) < plan.judges:
                    self._start(waiting.pop(0), plan.experiment.execution.threads)
                self._poll()
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        troubles, failures = self.docket.close({task: self.endings[task] for task in tasks})
        return {**self.troubles, **troubles}, [*broken, *failures]

    def _scoring_failures(self) -> list[str]:
        """What scorers met in the rows' own workers, in one line for each kind."""
        groups = Counter(self.troubles.values())
        return [f"scoring: {detail}, {n} clips" for (_, detail), n in groups.items()]

    @property
    def _cells(self) -> set[str]:
        return {c.cell.id for c in self.prepared.plan.cells}

    def _ending(self, cell: PlannedCell) -> Ending:
        ended = self.endings.get(cell.cell.id)
        if ended is None:
            return standing_of(cell)
        return Ending(status=ended.status, detail=ended.detail)

    def _leave_standing(self) -> None:
        """Write the run folder as it stands, so that a long run can be read before its end."""
        endings = {c.cell.id: self._ending(c) for c in self.prepared.plan.cells}
        collector = Collector(plan=self.prepared.plan, store=self.store)
        for cell in self.prepared.plan.cells:
            if cell.cell.id not in self.collected and endings[cell.cell.id].status is Status.OK:
                self.collected[cell.cell.id] = list(collector.records(cell))
        records = [r for found in self.collected.values() for r in found]
        write_run(
            describe_run(
                self.prepared.plan,
                self.store,
                folder=self.prepared.folder,
                endings=endings,
                records=records,
                warnings=[UNFINISHED],
                command=self.command,
            )
        )

    def measure(self, endings: dict[str, Ending]) -> tuple[dict[str, str], list[str]]:
        """Time the rows that ended well; returns the measured sets by model, and failures."""
        plan = self.prepared.plan
        measures: dict[str, str] = {}
        failures: list[str] = []
        if not plan.experiment.execution.measure:
            return measures, failures
        finished = {name for name, ending in endings.items() if ending.status is Status.OK}
        for model in plan.models:
            task = plan_measuring(plan, model, finished)
            if task is None:
                continue
            if self.store.find("measure", task.measure.key) is None:
                ended = self._alone(plan_texts(plan, model, self.store, [EMPTY]), task)
                if ended.status is not Status.OK:
                    failures.append(f"measuring {model.name}: {ended.status}: {ended.detail}")
                    continue
            measures[model.name] = task.measure.key
        return measures, failures

    def _alone(self, *tasks: Task | None) -> Ended:
        """Run tasks one after the other; the first that fails is the last."""
        ended, threads = None, self.prepared.plan.experiment.execution.threads
        for task in tasks:
            if task is not None and (ended is None or ended.status is Status.OK):
                # a text's key says with how many threads it was encoded
                self._start(task, threads if isinstance(task, TextTask) else cores())
                while self.running:
                    self._poll()
                ended = self.endings[task.id]
        assert ended is not None
        return ended


def _disk_full(task: str, detail: str) -> InfraError:
    return InfraError(
        f"the disk is full: '{task}' could not write ({detail})",
        "free space (`harness gc`); every published clip is kept, the same command goes on from "
        "there",
    )
