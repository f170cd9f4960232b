"""One run with faked workers, to be killed: ``fake_run.py <model> <out> <prompts> [method...]``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from harness.plan.experiment import Flags, resolve
from harness.plan.experiment_file import ExperimentFile
from harness.run.executors.local import LocalExecutor
from harness.run.run import execute, preflight, prepare
from harness.store.store import Store

if TYPE_CHECKING:
    from harness.plan.prepared import Prepared
    from harness.run.executors.base import Executor
    from harness.store.records import Run
    from harness.task import Ended, Event

FAKE_WORKER = (sys.executable, "-P", str(Path(__file__).parent / "fake_worker.py"))


class Quiet:
    """Watches and remembers."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def started(self, task: str) -> None:
        self.seen.append(f"start {task}")

    def event(self, event: Event) -> None:
        self.seen.append(f"{event.name} {event.task}")

    def ended(self, ended: Ended) -> None:
        self.seen.append(f"{ended.status} {ended.task}")

    def warning(self, text: str) -> None:
        self.seen.append(f"warning {text}")


def fake_executor(prepared: Prepared, store: Store) -> Executor:
    return LocalExecutor(
        store=store.root,
        device="cpu",
        stall_s=prepared.plan.experiment.execution.stall_s,
        folder=prepared.folder / "jobs",
        command=FAKE_WORKER,
    )


def fake_run(
    flags: Flags, file: ExperimentFile | None = None, monitor: Quiet | None = None
) -> tuple[Run, Prepared]:
    store = Store()
    prepared = prepare(resolve(file or ExperimentFile(), flags), store)
    preflight(prepared, store)
    run = execute(prepared, store, monitor or Quiet(), ["test"], fake_executor)
    return run, prepared


if __name__ == "__main__":
    model, out, prompts, *methods = sys.argv[1:]
    fake_run(
        Flags(
            models=(model,),
            methods=tuple(methods),
            suite=prompts,
            out=Path(out),
            jobs=2,
            baselines=False,
        )
    )
    print("finished", flush=True)
