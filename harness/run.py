"""A run: plan, start workers in order, collect records, print the table."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from harness.collect import Collector, Ending, copy_out, timing_warnings
from harness.durable import probe_folder
from harness.errors import InfraError
from harness.estimate import Estimate, check_space, estimate
from harness.executors.base import Ended, Event, Executor
from harness.executors.local import LocalExecutor
from harness.plan import Plan, make_plan, measure_task
from harness.provenance import cores
from harness.records import Run, write_run
from harness.spec import Record, Status
from harness.standing import UNFINISHED, describe_run, standing_of
from harness.store import Store

if TYPE_CHECKING:
    from harness.cells import PlannedCell
    from harness.task import Task

POLL_S = 0.2
OUT = Path("runs")


class Monitor(Protocol):
    """Somebody who watches a run."""

    def started(self, task: str) -> None:
        """A worker was started."""

    def event(self, event: Event) -> None:
        """A worker said something."""

    def ended(self, ended: Ended) -> None:
        """A worker ended."""

    def warning(self, text: str) -> None:
        """Something the user must see, that does not stop the run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A plan with what it takes and where it goes."""

    plan: Plan
    guess: Estimate
    folder: Path


MakeExecutor = Callable[[Prepared, Store], Executor]


def prepare(experiment: Any, store: Store) -> Prepared:
    """Plan an experiment; writes nothing but remembered facts about methods.

    Raises:
        HarnessError: The experiment cannot be run.
    """
    plan = make_plan(experiment, store)
    folder = (experiment.out or OUT / plan.run).absolute()
    return Prepared(plan=plan, guess=estimate(plan, store), folder=folder)


def preflight(prepared: Prepared, store: Store) -> None:
    """Prove that the results can be written, before anything is computed.

    Raises:
        InfraError: A folder cannot be written or the disk is too full.
    """
    probe_folder(prepared.folder, "choose another folder with --out")
    store.probe()
    check_space(prepared.plan, prepared.guess, store, prepared.folder)
    for leftover in store.stale():
        shutil.rmtree(leftover, ignore_errors=True)


def local_executor(prepared: Prepared, store: Store) -> Executor:
    """Workers on this machine."""
    return LocalExecutor(
        store=store.root,
        device=prepared.plan.device.id,
        timeout_s=prepared.plan.experiment.execution.timeout_s,
        folder=prepared.folder / "jobs",
    )


def execute(
    prepared: Prepared,
    store: Store,
    monitor: Monitor,
    command: list[str],
    make_executor: MakeExecutor = local_executor,
) -> Run:
    """Make what is missing and write the run folder.

    Raises:
        InfraError: The disk is full; everything published so far is kept.
        KeyboardInterrupt: Somebody stopped it; everything published so far is kept.
    """
    executor = make_executor(prepared, store)
    work = _Work(
        prepared=prepared, store=store, monitor=monitor, executor=executor, command=command
    )
    try:
        endings = work.make_cells()
        measures, failures = work.measure(endings)
    finally:
        executor.stop()
    collector = Collector(plan=prepared.plan, store=store, measures=measures)
    run = describe_run(
        prepared.plan,
        store,
        folder=prepared.folder,
        endings=endings,
        records=[record for cell in prepared.plan.cells for record in collector.records(cell)],
        failures=failures,
        warnings=timing_warnings(store, measures),
        command=command,
    )
    write_run(run)
    copy_out(prepared.plan, store, prepared.folder)
    return run


@dataclass(kw_only=True)
class _Work:
    """The tasks of a run and how far they are."""

    prepared: Prepared
    store: Store
    monitor: Monitor
    executor: Executor
    command: list[str]
    endings: dict[str, Ended] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)
    collected: dict[str, list[Record]] = field(default_factory=dict)

    def make_cells(self) -> dict[str, Ending]:
        """Run pools and cells, each when what it waits for has ended."""
        plan = self.prepared.plan
        waiting: dict[str, tuple[Task, set[str]]] = {
            name: (pool, set()) for name, pool in plan.pools.items()
        }
        todo = {c.cell.id: c for c in plan.cells if not c.done}
        for name, cell in todo.items():
            needs = {cell.pool} if cell.needs_quantizing else set()
            needs |= {cell.waits_for}
            waiting[name] = (cell.task, {n for n in needs if n in plan.pools or n in todo})
        if todo:
            self._leave_standing()
        while waiting or self.running:
            self._start_ready(waiting, todo)
            self._poll()
        return {c.cell.id: self._ending(c) for c in plan.cells}

    def _start_ready(
        self, waiting: dict[str, tuple[Task, set[str]]], todo: dict[str, PlannedCell]
    ) -> None:
        plan = self.prepared.plan
        ready = [n for n, (_, needs) in waiting.items() if needs <= self.endings.keys()]
        # The longest first: then the last worker to end is a short one.
        ready.sort(key=lambda n: (n in todo and bool(todo[n].waits_for), -self._work_s(n)))
        for name in ready:
            if len(self.running) >= plan.jobs:
                return
            task, _ = waiting.pop(name)
            broken = self.endings.get(todo[name].pool) if name in todo else None
            if broken is not None and broken.status is not Status.OK:
                self._give_up(name, broken)
                continue
            self._start(task, plan.experiment.execution.threads)

    def _work_s(self, name: str) -> float:
        return self.prepared.guess.work_s.get(name, 0.0)

    def _give_up(self, name: str, broken: Ended) -> None:
        ended = Ended(
            task=name,
            status=broken.status,
            detail=f"recording the calibration failed: {broken.detail}",
            disk_full=False,
            log=broken.log,
            seconds=0.0,
        )
        self.endings[name] = ended
        self.monitor.ended(ended)

    def _start(self, task: Task, threads: int) -> None:
        log = self.prepared.folder / "logs" / f"{task.id}.log"
        self.executor.start(task, log=log, threads=threads)
        self.running.add(task.id)
        self.monitor.started(task.id)

    def _poll(self) -> None:
        for found in self.executor.poll(POLL_S):
            if isinstance(found, Event):
                self.monitor.event(found)
                continue
            self.running.discard(found.task)
            self.endings[found.task] = found
            self.monitor.ended(found)
            if found.task in self._cells:
                self._leave_standing()
            if found.disk_full:
                raise InfraError(
                    f"the disk is full: '{found.task}' could not write ({found.detail})",
                    "free space (`harness gc`); every published clip is kept, the same command "
                    "goes on from there",
                )

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
        collector = Collector(plan=self.prepared.plan, store=self.store, measures={})
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
            task = measure_task(plan, model, finished)
            if task is None:
                continue
            if self.store.find("measure", task.measure.key) is None:
                self._start(task, cores())
                while self.running:
                    self._poll()
                ended = self.endings[task.id]
                if ended.status is not Status.OK:
                    failures.append(f"measuring {model.name}: {ended.status}: {ended.detail}")
                    continue
            measures[model.name] = task.measure.key
        return measures, failures
