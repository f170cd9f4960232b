"""VBench's values of a row as records: of its clips, and the aggregates over them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.generate.generate import ENCODER, FACTS_FILE
from harness.score.names import JUDGED
from harness.score.vbench_stage import Verdict, find_verdict, places
from harness.spec import Status
from harness.vbench.aggregate import UNFILTERED, ClipScore, Flickering, aggregate, flickering
from harness.vbench.cautions import Row, cautions
from harness.vbench.dimensions import CLOSENESS, DIMENSIONS, FLOW, STATIC
from harness.vbench.suites import FLICKERING, filters_static
from harness.vbench.totals import totals

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from harness.plan.cells import PlannedCell
    from harness.plan.plan import Plan
    from harness.store.store import Store
    from harness.task import ClipTask

OFFICIAL, STRICT = "official_", "_strict"
TOTALS = ("vbench_quality", "vbench_semantic", "vbench_total")
NOT_JUDGED = "not judged yet"
LEFT_OUT = "the official code leaves the clip out"

Facts = dict[str, Any]
"""Arguments of a record beside its metric and value."""


def unit(metric: str) -> tuple[str, str] | None:
    """Unit and direction of a metric of VBench; None for another one."""
    name = metric.removeprefix(OFFICIAL).removesuffix(STRICT)
    if name == STATIC:
        return "bool", "none"
    if name == FLOW:
        return "pixels", "none"
    name = FLICKERING if name == UNFILTERED else name
    if name in CLOSENESS:
        return "ratio", "none"
    return ("ratio", "higher") if name in DIMENSIONS or metric in TOTALS else None


@dataclass(frozen=True, kw_only=True, slots=True)
class _One:
    """One value of one clip: where it stands and what is stored of it."""

    wanted: ClipTask
    place: int
    key: str
    verdict: Verdict | None

    @property
    def id(self) -> str:
        return f"{self.wanted.prompt.id}-{self.place}"


@dataclass(kw_only=True)
class Judged:
    """One row.

    Attributes:
        troubles: Status and reason of values that this run could not make, by score key.
        flickering: Which clips flickering was averaged over, once the records were read.
    """

    plan: Plan
    store: Store
    planned: PlannedCell
    troubles: Mapping[str, tuple[Status, str]]
    flickering: Flickering | None = None
    _found: dict[str, list[_One]] = field(default_factory=dict)

    def records(self) -> Iterator[tuple[str, float | None, Facts]]:
        """Metric, value and the rest of each record."""
        judging = self.plan.judging
        if not any(self.store.find("clip", wanted.clip.key) for wanted in self.planned.task.clips):
            return  # the cell's own status says why
        for name, (status, detail) in judging.lost.items():
            yield self._metric(name), None, {"status": status, "detail": detail}
        self._read()
        self._choose_clips()
        official: dict[str, float | None] = {}
        for name in judging.wanted:
            if name in self._found:
                yield from self._clips(name)
                if name in DIMENSIONS:
                    yield from self._whole(name, official)
        found = totals(official)
        if not found.missing:
            for metric, value in zip(
                TOTALS, (found.quality, found.semantic, found.total), strict=True
            ):
                yield metric, value, {"detail": "official constants and aggregates"}

    def _read(self) -> None:
        judging = self.plan.judging
        clips = self.planned.task.clips
        for wanted, place in zip(clips, places(clips), strict=True):
            entry = self.store.find("clip", wanted.clip.key)
            names = judging.per_prompt.get(wanted.prompt.id, ())
            if judging.bench is None or entry is None:
                continue
            for name in names:
                key = judging.bench.key(name, wanted.prompt, entry).key
                verdict = find_verdict(self.store, name, key)
                one = _One(wanted=wanted, place=place, key=key, verdict=verdict)
                self._found.setdefault(name, []).append(one)

    def _choose_clips(self) -> None:
        if FLICKERING not in self._found:
            return
        static = None
        if filters_static(self.plan.suite):
            static = {
                one.id: bool(one.verdict.value)
                for one in self._found.get(STATIC, ())
                if one.verdict is not None and one.verdict.value is not None
            }
        self.flickering = flickering(self._scores(FLICKERING), static)

    def _metric(self, name: str) -> str:
        if name != FLICKERING:
            return name
        if self.flickering is not None:
            return self.flickering.metric
        return FLICKERING if filters_static(self.plan.suite) else UNFILTERED

    def _scores(self, name: str) -> list[ClipScore]:
        return [
            ClipScore(
                clip=one.id,
                prompt=one.wanted.prompt.id,
                sample=one.place,
                value=one.verdict.value,
                weight=one.verdict.weight,
                valid=one.verdict.valid,
                strict=one.verdict.strict,
            )
            for one in self._found[name]
            if one.verdict is not None and one.verdict.value is not None
        ]

    def _clips(self, name: str) -> Iterator[tuple[str, float | None, Facts]]:
        metric = self._metric(name)
        counted = None
        if name == FLICKERING and self.flickering is not None:
            counted = {score.clip for score in self.flickering.scores}
        for one in self._found[name]:
            verdict = one.verdict
            facts: Facts = {"clip": one.wanted, "key": one.key}
            if verdict is None:
                status, detail = self.troubles.get(one.key, (Status.SKIPPED, NOT_JUDGED))
                yield metric, None, {**facts, "status": status, "detail": detail}
                continue
            facts |= {"at": verdict.at, "scorer": verdict.scorer}
            if verdict.strict is not None:
                yield metric + STRICT, verdict.strict, facts
            if verdict.failed:
                failed = {"status": Status.ERROR, "detail": verdict.failed}
                yield metric, None, {**facts, **failed}
            elif not verdict.valid:
                yield metric, None, {**facts, "status": Status.SKIPPED, "detail": LEFT_OUT}
            elif counted is None or one.id in counted:
                yield metric, verdict.value, facts

    def _whole(
        self, name: str, official: dict[str, float | None]
    ) -> Iterator[tuple[str, float | None, Facts]]:
        """The official aggregate, which exists only where every clip was judged."""
        metric, rows = self._metric(name), self._found[name]
        scores = self._scores(name)
        if len(scores) < len(rows):
            why = f"{len(scores)} of {len(rows)} clips are judged"
            yield OFFICIAL + metric, None, {"status": Status.SKIPPED, "detail": why}
            return
        if name == FLICKERING and self.flickering is not None:
            scores = list(self.flickering.scores)
        found = aggregate(scores)
        if found.official is None:
            why = f"0 of {found.n} clips count"
            yield OFFICIAL + metric, None, {"status": Status.SKIPPED, "detail": why}
            return
        if metric != UNFILTERED:
            official[name] = found.official
        scorer = next(one.verdict.scorer for one in rows if one.verdict is not None)
        few = f"{found.n_valid} of {found.n} clips count" if found.n_valid < found.n else ""
        yield OFFICIAL + metric, found.official, {"scorer": scorer, "detail": few}

    def row(self) -> Row | None:
        """How the clips were made, None where there are none."""
        for wanted in self.planned.task.clips:
            entry = self.store.find("clip", wanted.clip.key)
            if entry is not None:
                gen, model = self.planned.cell.gen, self.planned.cell.model
                coded = entry.json(FACTS_FILE).get(ENCODER) or {}
                return Row(
                    label=f"{self.planned.cell.method.label} {self.planned.cell.bits}",
                    fps=gen.fps,
                    model_fps=model.gen.fps,
                    frames=gen.frames,
                    encoder=" ".join(f"{k} {v}" for k, v in sorted(coded.items())),
                )
        return None


def judged_cautions(rows: Sequence[Judged], plan: Plan) -> list[str]:
    """What must be said before VBench's numbers of a run are compared with others."""
    whole = [row for row in rows if row._found]
    if not whole or not plan.judging.asked:
        return []
    made = Counter(wanted.prompt.id for wanted in whole[0].planned.task.clips)
    names = {row._metric(name) for row in whole for name in row._found if name in JUDGED}
    return cautions(
        [found for row in whole if (found := row.row()) is not None],
        suite=plan.suite,
        dimensions=sorted(names),
        made=made,
        flickering=whole[0].flickering,
    )
