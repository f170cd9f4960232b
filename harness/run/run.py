"""A run: plan, start workers in order, have the clips judged, collect records."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.generate.generate import cut_remarks
from harness.measure.measure import measuring_warning
from harness.plan.estimate import check_space, estimate
from harness.plan.fit import check_memory
from harness.plan.plan import make_plan
from harness.plan.prepared import Prepared
from harness.run.collect import Collector
from harness.run.executors.base import Executor
from harness.run.executors.local import LocalExecutor
from harness.run.folder import copy_out, describe_run
from harness.run.schedule import Monitor, Schedule
from harness.store.durable import probe_folder
from harness.store.records import Run, write_run
from harness.store.store import Store

if TYPE_CHECKING:
    from harness.task import Ended, Event

OUT = Path("runs")


class Silent:
    """A monitor that shows nothing."""

    def started(self, task: str) -> None:
        """Nothing is shown."""

    def event(self, event: Event) -> None:
        """Nothing is shown."""

    def ended(self, ended: Ended) -> None:
        """Nothing is shown."""


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
        InfraError: A folder cannot be written, the disk is too full, or memory does not suffice.
    """
    probe_folder(prepared.folder, "choose another folder with --out")
    store.probe()
    check_memory(prepared.plan, store.root / "facts")
    check_space(prepared.plan, prepared.guess, store, prepared.folder)
    for leftover in store.stale():
        shutil.rmtree(leftover, ignore_errors=True)


def local_executor(prepared: Prepared, store: Store) -> Executor:
    """Workers on this machine."""
    return LocalExecutor(
        store=store.root,
        device=prepared.plan.device.id,
        stall_s=prepared.plan.experiment.execution.stall_s,
        folder=prepared.folder / "jobs",
        offload=prepared.plan.experiment.execution.offload,
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
    schedule = Schedule(
        prepared=prepared, store=store, monitor=monitor, executor=executor, command=command
    )
    try:
        endings = schedule.make_cells()
        troubles, lost = schedule.judge(endings)
        measures, failures = schedule.measure(endings)
    finally:
        executor.stop()
    plan = prepared.plan
    collector = Collector(plan=plan, store=store, measures=measures, troubles=troubles)
    entries = {model: store.find("measure", key) for model, key in measures.items()}
    warnings = [measuring_warning(entry, model) for model, entry in entries.items()]
    firsts = [cell for cell in plan.cells if cell.task.first]
    cut = [line for c in firsts for line in cut_remarks(store, c.task.clips, c.cell.model.name)]
    run = describe_run(
        plan,
        store,
        folder=prepared.folder,
        endings=endings,
        records=[record for cell in plan.cells for record in collector.records(cell)],
        failures=[*lost, *failures],
        warnings=[text for text in warnings if text],
        remarks=[*plan.vbench.cautions(store, [cell.task for cell in plan.cells]), *cut],
        judges=() if schedule.docket is None else schedule.docket.counts,
        command=command,
    )
    write_run(run)
    copy_out(plan, store, prepared.folder)
    return run
