"""What a run asks of VBench: which dimensions, by what, and what cannot be judged and why.

Planning starts no process but the first time a scoring environment is seen, and downloads nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psutil

from harness.errors import HarnessError
from harness.score.names import JUDGED
from harness.score.vbench_scorer import FLOAT32, Bench
from harness.score.vbench_stage import Missing, places
from harness.spec import Status
from harness.store.provenance import Device, cpu_name
from harness.vbench import environment, weights
from harness.vbench.dimensions import DIMENSIONS, EIGHT
from harness.vbench.suites import FLICKERING, dimensions, is_vbench
from harness.vbench.wants import ACTION, action_classes, dimensions_for

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from harness.plan.cells import PlannedCell
    from harness.plan.experiment import Experiment
    from harness.spec import PromptSuite
    from harness.store.store import Store
    from harness.task import ClipTask
    from harness.vbench.environment import Environment

# torch, the libraries and the frames of a clip: 0.4 to 1.0 GB seen with light models, 4.5 GB with
# Tag2Text, whose weights are 1.5 GB.
_WORKER_BYTES = 2 << 30
_MODEL_SHARE = 1.5
_NAMED = 3  # dimensions that a command names one by one
DETECTOR = "needs detectron2, which is not installed in the scoring environment"
OTHERS = (
    "of VBench's 16 dimensions only temporal flickering is judged unasked, over all clips instead "
    "of static ones: the others with --metrics vbench-8 or vbench-16, their weights by harness "
    "fetch vbench-weights"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Judging:
    """What is asked of VBench.

    Attributes:
        bench: What judges; None where there is no scoring environment or nothing is asked.
        wanted: Every dimension that is asked for, also those that cannot be judged.
        per_prompt: Dimensions that can be judged, by prompt id.
        lost: Dimensions that cannot be judged at all: status and reason.
        asked: Whether somebody asked for it, by metrics or by the suite.
        remarks: What the reader of the table is told of it.
    """

    bench: Bench | None = None
    wanted: tuple[str, ...] = ()
    per_prompt: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    lost: Mapping[str, tuple[Status, str]] = field(default_factory=dict)
    asked: bool = False
    remarks: tuple[str, ...] = ()

    def missing(self, store: Store, cells: Iterable[PlannedCell]) -> list[Missing]:
        """The values that are not stored, of the clips that are.

        A value that several rows share stands with each of them.
        """
        found = []
        for cell, clip, place in _clips(cells):
            entry = store.find("clip", clip.clip.key)
            names = self.per_prompt.get(clip.prompt.id, ())
            if self.bench is None or entry is None or cell.unsupported or not names:
                continue
            keys = [(name, self.bench.key(name, clip.prompt, entry)) for name in names]
            wants = tuple((n, k) for n, k in keys if store.find("score", k.key) is None)
            if wants:
                found.append(Missing(clip=entry, prompt=clip.prompt, place=place, wants=wants))
        return found

    def workers(self, device: Device, jobs: int) -> int:
        """Workers that fit side by side: each of them loads every model."""
        if self.bench is None or device.id != "cpu":
            return 1
        ids = weights.ids_of([n for n in self.wanted if n not in self.lost])
        if not ids:
            return 1  # reading clips takes less than starting a second worker
        table = weights.table()
        files = {file.here(self.bench.weights) for name in ids for file in table[name].files}
        held = sum(path.stat().st_size for path in files if path is not None)
        need = _WORKER_BYTES + _MODEL_SHARE * held
        return max(1, min(jobs, int(psutil.virtual_memory().available // need)))

    def open(self, store: Store, cells: Sequence[PlannedCell]) -> Counter[str]:
        """Values to be made by dimension, those of clips that are still to be made included."""
        keys = {k.key: name for m in self.missing(store, cells) for name, k in m.wants}
        count = Counter(keys.values())
        for cell, clip, _ in _clips(cells):
            if self.bench is not None and not cell.unsupported:
                names = self.per_prompt.get(clip.prompt.id, ())
                if names and store.find("clip", clip.clip.key) is None:
                    count.update(names)
        return count


def plan_judging(experiment: Experiment, suite: PromptSuite, device: Device) -> Judging:
    """Resolve what is asked of VBench against what is installed.

    Raises:
        UsageError: The interpreter of the experiment file cannot score.
        HarnessError: The scoring environment is broken and a dimension of it was asked for.
    """
    wanted, asked = _wanted(experiment, suite)
    if not wanted:
        return Judging()
    try:
        found = environment.find(experiment.judge.python)
    except HarnessError as cause:
        if asked or experiment.judge.python is not None:
            raise
        return Judging(remarks=(f"vbench: {cause.message}; {cause.hint}",))
    if found is None:
        why = environment.missing_line()
        lost = dict.fromkeys(wanted, (Status.SKIPPED, why)) if asked else {}
        line = f"{', '.join(lost)} skipped: {why}" if lost else f"no dimension of VBench: {why}"
        return Judging(wanted=wanted, lost=lost, remarks=(line,))
    return _resolve(experiment, suite, device, found, wanted=wanted, asked=asked)


def _wanted(experiment: Experiment, suite: PromptSuite) -> tuple[tuple[str, ...], bool]:
    """Dimensions, and whether somebody asked for them."""
    if experiment.metrics is not None:
        return tuple(m for m in experiment.metrics if m in JUDGED), True
    if not is_vbench(suite):
        return (FLICKERING,), False
    listed = {name for prompt in suite.prompts for name in dimensions(prompt)}
    return tuple(n for n in dict.fromkeys([*EIGHT, *DIMENSIONS]) if n in listed), True


def _resolve(
    experiment: Experiment,
    suite: PromptSuite,
    device: Device,
    found: Environment,
    *,
    wanted: tuple[str, ...],
    asked: bool,
) -> Judging:
    # VBench's own prompts name actions that it knows.
    own = ACTION in wanted and not is_vbench(suite)
    actions = action_classes(found.full_info) if own else None
    wants = dimensions_for(suite, wanted, actions=actions)
    names = tuple(dict.fromkeys([*wanted, *(n for of in wants.per_prompt.values() for n in of)]))
    lost = {name: (Status.UNSUPPORTED, why) for name, why in wants.refused.items()}
    folder, digests = weights.folder(), {}
    for name in names:
        trouble = lost.get(name) or _absent(name, found, folder)
        if trouble is None:
            try:
                digests[name] = weights.digests(weights.ids_of([name]), folder)
            except HarnessError as cause:
                trouble = (Status.ERROR, f"{cause.message}; {cause.hint}")
        if trouble is not None:
            lost[name] = trouble
    told = [f"{name}: {why}" for name, why in wants.partly.items() if name not in lost]
    precision = experiment.judge.precision
    if digests and weights.is_stand_in(folder) and weights.ids_of(list(digests)):
        told.append("the weights of VBench are stand-ins: its numbers say nothing about quality")
    if precision != FLOAT32:
        told.append(f"vbench computed in {precision}: approximate, not the official values")
    return Judging(
        bench=_bench(experiment, device, found, folder, digests),
        wanted=names,
        per_prompt={
            prompt: tuple(n for n in of if n not in lost) for prompt, of in wants.per_prompt.items()
        },
        lost=lost,
        asked=asked,
        remarks=(*_reasons(lost, folder), *told, *(() if asked else (OTHERS,))),
    )


def _bench(
    experiment: Experiment,
    device: Device,
    found: Environment,
    folder: Path,
    digests: Mapping[str, Mapping[str, str]],
) -> Bench:
    judge = experiment.judge
    return Bench(
        python=found.python,
        versions=found.versions,
        weights=folder,
        digests=digests,
        device=device if found.cuda else Device(id="cpu", name=cpu_name()),
        scorer=judge.scorer,
        precision=judge.precision,
        batch=judge.batch,
        threads=experiment.execution.threads,
        stand_in=weights.is_stand_in(folder),
    )


def _absent(name: str, found: Environment, folder: Path) -> tuple[Status, str] | None:
    """Why a dimension cannot be judged here."""
    known = DIMENSIONS.get(name)
    if known is not None and known.detector and not found.detector:
        return Status.UNSUPPORTED, DETECTOR
    ids = weights.ids_of([name])
    if weights.missing(ids, folder):
        return Status.SKIPPED, weights.missing_line(name, ids)
    return None


def _reasons(lost: Mapping[str, tuple[Status, str]], folder: Path) -> list[str]:
    """One line for all weights that are missing, one for each other reason but for errors.

    Errors are among the failures of the run, which every table shows.
    """
    absent = [name for name, (status, _) in lost.items() if status is Status.SKIPPED]
    lines = []
    if absent:
        lines.append(
            f"{', '.join(absent)} skipped: weights are not in {folder}: "
            f"harness fetch vbench-weights{_which(absent)}"
        )
    groups: dict[tuple[Status, str], list[str]] = {}
    for name, reason in lost.items():
        if reason[0] is Status.UNSUPPORTED:
            groups.setdefault(reason, []).append(name)
    return lines + [f"{', '.join(n)} {status}: {why}" for (status, why), n in groups.items()]


def _which(absent: Sequence[str]) -> str:
    """The options that fetch for these dimensions, or for more where the list would be long."""
    if len(absent) <= _NAMED:
        return "".join(f" --dimension {name}" for name in absent)
    return " --metrics vbench-8" if set(absent) <= set(EIGHT) else ""


def _clips(cells: Iterable[PlannedCell]) -> Iterator[tuple[PlannedCell, ClipTask, int]]:
    """Cell, clip, and which of the clips of its prompt it is."""
    for cell in cells:
        for clip, place in zip(cell.task.clips, places(cell.task.clips), strict=True):
            yield cell, clip, place
