"""What a run asks of VBench: which dimensions, of whom, and what cannot be judged and why.

Planning starts no process but the first time a scoring environment is seen, and downloads nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psutil

from harness.errors import HarnessError
from harness.generate.generate import ENCODER, FACTS_FILE
from harness.score.names import JUDGED
from harness.score.scorer import Scorer, Unscored, clips_of
from harness.score.vbench_judge import FLOAT32, VBenchJudge
from harness.score.vbench_scorer import (
    FlickeringScorer,
    VBenchScorer,
    VBenchTotals,
    metrics_of,
    places,
)
from harness.score.vbench_stage import Missing
from harness.spec import Status
from harness.store.provenance import Device, cpu_name
from harness.vbench import environment, weights
from harness.vbench.aggregate import UNFILTERED
from harness.vbench.cautions import ClipMaking, cautions
from harness.vbench.dimensions import DIMENSIONS, EIGHT, STATIC
from harness.vbench.suites import FLICKERING, dimensions, filters_static, is_vbench
from harness.vbench.wants import ACTION, action_classes, dimensions_for

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from harness.spec import PromptSuite
    from harness.store.store import Store
    from harness.task import CellTask, ClipTask
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
class JudgeSettings:
    """How VBench is run.

    Attributes:
        python: Interpreter that has it; None for the one that `harness fetch vbench` made.
        scorer: ``shared`` loads each model and reads each file once; ``official`` calls the
            package's own function for each dimension.
        precision: ``float32``; ``bfloat16`` is faster, and its values are not the official ones.
        batch: Frames or pairs of frames that a model sees at once.
        shards: Workers that share the clips; None for as many as fit.
    """

    python: str | None = None
    scorer: str = "shared"
    precision: str = FLOAT32
    batch: int = 1
    shards: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class VBenchPlan:
    """What is asked of VBench.

    Attributes:
        suite: The evaluation prompts.
        judge: Who judges; None where there is no scoring environment or nothing is asked.
        wanted: Every dimension that is asked for, also those that cannot be judged.
        per_prompt: Dimensions that can be judged, by prompt id.
        lost: Dimensions that cannot be judged at all: status and reason.
        asked: Whether somebody asked for it, by metrics or by the suite.
        remarks: What the reader of the table is told of it.
    """

    suite: PromptSuite
    judge: VBenchJudge | None = None
    wanted: tuple[str, ...] = ()
    per_prompt: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    lost: Mapping[str, tuple[Status, str]] = field(default_factory=dict)
    asked: bool = False
    remarks: tuple[str, ...] = ()

    def scorers(self) -> tuple[Scorer, ...]:
        """A scorer for each dimension that is wanted, those that cannot judge included."""
        found: dict[str, Scorer] = {
            name: Unscored(_known(name, self.suite), status, why, needs_clip=True)
            for name, (status, why) in self.lost.items()
        }
        judged = {name: self._scorer(name) for name in self.wanted if name not in self.lost}
        found |= {name: one for name, one in judged.items() if one is not None}
        one = judged.get(FLICKERING)
        if isinstance(one, FlickeringScorer) and filters_static(self.suite):
            one.static = judged.get(STATIC)
        totals = VBenchTotals(one for one in judged.values() if one is not None)
        return (*found.values(), *([totals] if found else []))

    def _scorer(self, name: str) -> VBenchScorer | None:
        """Who judges a dimension; None where no prompt can be judged by it."""
        prompts = [prompt for prompt, names in self.per_prompt.items() if name in names]
        if self.judge is None or not prompts:
            return None
        if name == FLICKERING:
            return FlickeringScorer(name, self.judge, prompts, None)
        return VBenchScorer(name, self.judge, prompts)

    def missing(self, store: Store, tasks: Iterable[CellTask]) -> list[Missing]:
        """The values that are not stored, of the clips that are.

        A value that several rows share stands with each of them.
        """
        found = []
        for clip, place in _clips(tasks):
            entry = store.find("clip", clip.clip.key)
            names = self.per_prompt.get(clip.prompt.id, ())
            if self.judge is None or entry is None or not names:
                continue
            keys = [(name, self.judge.key(name, clip.prompt, entry)) for name in names]
            wants = tuple((n, k) for n, k in keys if store.find("score", k.key) is None)
            if wants:
                found.append(Missing(clip=entry, prompt=clip.prompt, place=place, wants=wants))
        return found

    def open(self, store: Store, tasks: Sequence[CellTask]) -> Counter[str]:
        """Values to be made by dimension, those of clips that are still to be made included."""
        keys = {k.key: name for m in self.missing(store, tasks) for name, k in m.wants}
        count = Counter(keys.values())
        for clip, _ in _clips(tasks if self.judge is not None else ()):
            names = self.per_prompt.get(clip.prompt.id, ())
            if names and store.find("clip", clip.clip.key) is None:
                count.update(names)
        return count

    def workers(self, device: Device, jobs: int) -> int:
        """Workers that fit side by side: each of them loads every model."""
        if self.judge is None or device.id != "cpu":
            return 1
        ids = weights.ids_of([n for n in self.wanted if n not in self.lost])
        if not ids:
            return 1  # reading clips takes less than starting a second worker
        table = weights.table()
        files = {file.here(self.judge.weights) for name in ids for file in table[name].files}
        held = sum(path.stat().st_size for path in files if path is not None)
        need = _WORKER_BYTES + _MODEL_SHARE * held
        return max(1, min(jobs, int(psutil.virtual_memory().available // need)))

    def cautions(self, store: Store, tasks: Sequence[CellTask]) -> list[str]:
        """What must be said before VBench's numbers of a run are compared with others."""
        scorers = [one for one in self.scorers() if isinstance(one, VBenchScorer)]
        judged = [t for t in tasks if any(one.judged(store, t) for one in scorers)]
        if not judged or not self.asked:
            return []
        first = judged[0]
        chosen = next(
            (one.chosen(store, first) for one in scorers if isinstance(one, FlickeringScorer)), None
        )
        names = {one.name for one in scorers}
        if chosen is not None:
            names = {*names - {FLICKERING}, chosen.metric}
        return cautions(
            [making for task in judged if (making := _making(store, task)) is not None],
            suite=self.suite,
            dimensions=sorted(names),
            made=Counter(wanted.prompt.id for wanted in first.clips),
            flickering=chosen,
        )


def plan_vbench(
    suite: PromptSuite,
    device: Device,
    settings: JudgeSettings,
    *,
    metrics: Sequence[str] | None,
    threads: int,
) -> VBenchPlan:
    """Resolve what is asked of VBench against what is installed.

    Args:
        suite: The evaluation prompts.
        device: What the run computes on.
        settings: How VBench is run.
        metrics: What was asked for by name; None for what fits the suite.
        threads: Threads a worker computes with.

    Raises:
        UsageError: The interpreter of the experiment file cannot score.
        HarnessError: The scoring environment is broken and a dimension of it was asked for.
    """
    wanted, asked = _wanted(metrics, suite)
    if not wanted:
        return VBenchPlan(suite=suite)
    try:
        found = environment.find(settings.python)
    except HarnessError as cause:
        if asked or settings.python is not None:
            raise
        return VBenchPlan(suite=suite, remarks=(f"vbench: {cause.message}; {cause.hint}",))
    if found is None:
        why = environment.missing_line()
        lost = dict.fromkeys(wanted, (Status.SKIPPED, why)) if asked else {}
        line = f"{', '.join(lost)} skipped: {why}" if lost else f"no dimension of VBench: {why}"
        return VBenchPlan(suite=suite, wanted=wanted, lost=lost, remarks=(line,))
    # VBench's own prompts name actions that it knows.
    own = ACTION in wanted and not is_vbench(suite)
    wants = dimensions_for(suite, wanted, actions=action_classes(found.full_info) if own else None)
    names = tuple(dict.fromkeys([*wanted, *(n for of in wants.per_prompt.values() for n in of)]))
    lost = {name: (Status.UNSUPPORTED, why) for name, why in wants.refused.items()}
    folder = weights.folder()
    digests = _digests(names, found, folder, lost)
    told = [f"{name}: {why}" for name, why in wants.partly.items() if name not in lost]
    told += _departures(settings, folder, digests)
    return VBenchPlan(
        suite=suite,
        judge=_judge(settings, device, found, folder, digests, threads),
        wanted=names,
        per_prompt={
            prompt: tuple(n for n in of if n not in lost) for prompt, of in wants.per_prompt.items()
        },
        lost=lost,
        asked=asked,
        remarks=(*_reasons(lost, folder), *told, *(() if asked else (OTHERS,))),
    )


def _departures(settings: JudgeSettings, folder: Path, digests: Collection[str]) -> list[str]:
    """What makes the values other than the official ones."""
    told = []
    if digests and weights.is_stand_in(folder) and weights.ids_of(list(digests)):
        told.append("the weights of VBench are stand-ins: its numbers say nothing about quality")
    if settings.precision != FLOAT32:
        told.append(
            f"vbench computed in {settings.precision}: approximate, not the official values"
        )
    return told


def _wanted(metrics: Sequence[str] | None, suite: PromptSuite) -> tuple[tuple[str, ...], bool]:
    """Dimensions, and whether somebody asked for them."""
    if metrics is not None:
        return tuple(m for m in metrics if m in JUDGED), True
    if not is_vbench(suite):
        return (FLICKERING,), False
    listed = {name for prompt in suite.prompts for name in dimensions(prompt)}
    return tuple(n for n in dict.fromkeys([*EIGHT, *DIMENSIONS]) if n in listed), True


def _digests(
    names: Sequence[str],
    found: Environment,
    folder: Path,
    lost: dict[str, tuple[Status, str]],
) -> dict[str, Mapping[str, str]]:
    """Digests of the weights of each dimension that can be judged; adds the others to ``lost``."""
    digests: dict[str, Mapping[str, str]] = {}
    for name in names:
        trouble = lost.get(name) or _absent(name, found, folder)
        if trouble is None:
            try:
                digests[name] = weights.digests(weights.ids_of([name]), folder)
            except HarnessError as cause:
                trouble = (Status.ERROR, f"{cause.message}; {cause.hint}")
        if trouble is not None:
            lost[name] = trouble
    return digests


def _judge(
    settings: JudgeSettings,
    device: Device,
    found: Environment,
    folder: Path,
    digests: Mapping[str, Mapping[str, str]],
    threads: int,
) -> VBenchJudge:
    return VBenchJudge(
        python=found.python,
        versions=found.versions,
        weights=folder,
        digests=digests,
        device=device if found.cuda else Device(id="cpu", name=cpu_name()),
        scorer=settings.scorer,
        precision=settings.precision,
        batch=settings.batch,
        threads=threads,
        stand_in=weights.is_stand_in(folder),
    )


def _known(name: str, suite: PromptSuite) -> Scorer:
    """A dimension by the name that its values would have."""
    found = Scorer()
    found.name = name
    facts = metrics_of(name)
    if name == FLICKERING and not filters_static(suite):
        facts = tuple(fact for fact in facts if fact.name == UNFILTERED)
    found.metrics = facts[:1]
    return found


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


def _making(store: Store, task: CellTask) -> ClipMaking | None:
    """How the clips of a row were made, None where there are none."""
    for _, entry, _ in clips_of(store, task):
        if entry is not None:
            coded = entry.json(FACTS_FILE).get(ENCODER) or {}
            return ClipMaking(
                label=f"{task.method.label} {task.bits}",
                fps=task.gen.fps,
                model_fps=task.model.gen.fps,
                frames=task.gen.frames,
                encoder=" ".join(f"{k} {v}" for k, v in sorted(coded.items())),
            )
    return None


def _clips(tasks: Iterable[CellTask]) -> Iterator[tuple[ClipTask, int]]:
    """Each clip of the rows, and which of the clips of its prompt it is."""
    for task in tasks:
        yield from zip(task.clips, places(task.clips), strict=True)
