"""VBench's dimensions as scorers: of each clip a value, over them the official aggregate.

Their values are made in the scoring environment (``vbench_stage``), and aggregated here, over all
workers' answers alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.score.scorer import FILE, Clip, Scorer, StoredScore, clips_of, find_score
from harness.spec import VBENCH, Metric, Status, Value
from harness.vbench.aggregate import UNFILTERED, ClipScore, aggregate, flickering
from harness.vbench.dimensions import CLOSENESS, DIMENSIONS, EIGHT, FLOW, STATIC
from harness.vbench.suites import FLICKERING
from harness.vbench.totals import totals

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from harness.score.vbench_judge import VBenchJudge
    from harness.spec import Prompt
    from harness.store.keys import Keyed
    from harness.store.store import Entry, Store
    from harness.task import CellTask, ClipTask
    from harness.vbench.aggregate import Flickering

OFFICIAL_PREFIX, STRICT = "official_", "_strict"
TOTALS = ("vbench_quality", "vbench_semantic", "vbench_total")
NOT_JUDGED = "not judged yet"
LEFT_OUT = "the official code leaves the clip out"
DIMENSION_ORDER = tuple(dict.fromkeys([*EIGHT, *DIMENSIONS]))
"""The columns of the papers first, in their order."""

_SHORT = {
    "aesthetic_quality": "aesth.\nquality",
    "background_consistency": "backgr.\nconsist.",
    "imaging_quality": "imaging\nquality",
    "motion_smoothness": "motion\nsmooth.",
    "overall_consistency": "overall\nconsist.",
    "subject_consistency": "subject\nconsist.",
    UNFILTERED: "flicker.\nunfilt.",
}
# Seconds of one clip of 49 frames of 480x720 on one core of a server (Xeon with AMX), until
# something was judged here; not known for other dimensions and not for accelerators.
_SECONDS = {
    "temporal_flickering": 0.4,
    "subject_consistency": 24.0,
    "background_consistency": 8.0,
    "motion_smoothness": 50.0,
    "dynamic_degree": 400.0,
    "aesthetic_quality": 61.0,
    "imaging_quality": 20.0,
    "overall_consistency": 13.0,
    "temporal_style": 13.0,
    "scene": 100.0,
}
_SECONDS_FRAMES = 49


def expected_s(name: str, frames: int) -> float | None:
    """Guessed seconds of judging a clip by a dimension on one core; None where nobody knows."""
    return None if name not in _SECONDS else _SECONDS[name] * frames / _SECONDS_FRAMES


@cache
def metrics_of(name: str) -> tuple[Metric, ...]:
    """Facts of what a name of VBench gives, in hundredths, as papers print dimensions."""
    if name == FLOW:
        title = "flow\npixels"
        return (Metric(name=FLOW, unit="pixels", title=title, block=VBENCH, interval=True),)
    if name == STATIC:
        fact = Metric(
            name=STATIC, unit="bool", title="static\n%", block=VBENCH, digits=1, scale=100,
            shown=False,
        )  # fmt: skip
        return (fact,)
    if name == FLICKERING:
        return (*_dimension(FLICKERING), *_dimension(UNFILTERED))
    return _dimension(name)


def _dimension(name: str) -> tuple[Metric, ...]:
    """A mean with its difference to fp, the strict reading, the official aggregate."""
    title = _SHORT.get(name, name.replace("_", "\n", 1))
    closeness = name in (*CLOSENESS, UNFILTERED)
    better = "none" if closeness else "higher"
    facts: dict[str, Any] = {
        "unit": "ratio",
        "better": better,
        "block": VBENCH,
        "scale": 100.0,
        "interval_digits": 1,
        "closeness": closeness,
    }
    return (
        Metric(
            name=name, title=title, interval=True, difference=f"{title}\nvs fp",
            difference_shown=False, headline=True, **facts,
        ),
        Metric(name=name + STRICT, title=f"{title}\nstrict", interval=True, shown=False, **facts),
        Metric(
            name=OFFICIAL_PREFIX + name, title=f"{title}\nofficial", whole=True, shown=False,
            aggregate_of=name, **facts,
        ),
    )  # fmt: skip


TOTAL_METRICS = tuple(
    Metric(
        name=name, unit="ratio", better="higher", title=name.replace("_", "\n"), block=VBENCH,
        whole=True, scale=100, headline=True,
    )
    for name in TOTALS
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedClip:
    """One clip that a dimension judges: where it stands and what is stored of it."""

    wanted: ClipTask
    place: int
    key: str
    score: StoredScore | None

    @property
    def id(self) -> str:
        """Unique in its row."""
        return f"{self.wanted.prompt.id}-{self.place}"

    def value(self, dimension: str) -> float | None:
        """On the scale 0 to 1; None where there is none."""
        found = None if self.score is None else self.score.values.get(dimension)
        return None if found is None else float(found)

    @property
    def strict(self) -> float | None:
        """The value under the strict reading, where the dimension has one."""
        found = None if self.score is None else self.score.facts["facts"].get("strict")
        return None if found is None else float(found)


class VBenchScorer(Scorer):
    """A dimension, the static filter or the flow score of the official package.

    Args:
        name: Of ``DIMENSIONS``, ``STATIC`` or ``FLOW``.
        judge: Who judges.
        prompts: Ids of the prompts whose clips it judges.
    """

    outside = True
    reads = FILE

    def __init__(self, name: str, judge: VBenchJudge, prompts: Iterable[str]) -> None:
        self.name = name
        self.metrics = metrics_of(name)
        self.judge = judge
        self.prompts = frozenset(prompts)

    def key(self, prompt: Prompt, clip: Entry, reference: Entry | None) -> Keyed:
        """Key of one value, which names the whole scoring environment."""
        del reference
        return self.judge.key(self.name, prompt, clip)

    def score(self, clip: Clip, reference: Clip | None) -> Mapping[str, float]:
        """Refused: the scoring environment judges.

        Raises:
            HarnessError: Always.
        """
        raise HarnessError(
            f"'{self.name}' is judged by VBench's own environment, not by a worker of this one",
            "harness run --metrics asks it",
        )

    def open(self, store: Store, task: CellTask) -> int:
        """Values of a row that have to be made, of those whose clips exist."""
        return sum(one.score is None for one in self.judged(store, task))

    def judged(self, store: Store, task: CellTask) -> list[JudgedClip]:
        """The clips of a row that there are and that this judges."""
        found = []
        clips = clips_of(store, task)
        for (wanted, clip, _), place in zip(clips, places(task.clips), strict=True):
            if clip is None or wanted.prompt.id not in self.prompts:
                continue
            key = self.key(wanted.prompt, clip, None).key
            score = find_score(store, key)
            found.append(JudgedClip(wanted=wanted, place=place, key=key, score=score))
        return found

    def values(
        self, store: Store, task: CellTask, troubles: Mapping[str, tuple[Status, str]]
    ) -> Iterator[Value]:
        """The value of each clip, then the official aggregate over them."""
        clips = self.judged(store, task)
        if not clips:
            return
        for one in clips:
            yield from self._clip(one, self.name, troubles)
        if self.name in DIMENSIONS:
            yield self.official(store, task)

    def official(self, store: Store, task: CellTask) -> Value:
        """The official aggregate, which exists only where every clip was judged."""
        clips = self.judged(store, task)
        return self._official(clips, self._scores(clips), self.name)

    def _official(
        self, clips: Sequence[JudgedClip], scores: Sequence[ClipScore], metric: str
    ) -> Value:
        name = OFFICIAL_PREFIX + metric
        have = len(self._scores(clips))
        if have < len(clips):
            why = f"{have} of {len(clips)} clips are judged"
            return Value(metric=name, status=Status.SKIPPED, detail=why)
        found = aggregate(scores)
        if found.official is None:
            why = f"0 of {found.n} clips count"
            return Value(metric=name, status=Status.SKIPPED, detail=why)
        scorer = next(str(one.score.facts["scorer"]) for one in clips if one.score is not None)
        few = f"{found.n_valid} of {found.n} clips count" if found.n_valid < found.n else ""
        return Value(metric=name, value=found.official, scorer=scorer, detail=few)

    def _scores(self, clips: Iterable[JudgedClip]) -> list[ClipScore]:
        """The clips that have a value, as the aggregates take them."""
        found = []
        for one in clips:
            value = one.value(self.name)
            if one.score is None or value is None:
                continue
            found.append(
                ClipScore(
                    clip=one.id,
                    prompt=one.wanted.prompt.id,
                    sample=one.place,
                    value=value,
                    weight=float(one.score.facts["weight"]),
                    valid=bool(one.score.facts["valid"]),
                    strict=one.strict,
                )
            )
        return found

    def _clip(
        self, one: JudgedClip, metric: str, troubles: Mapping[str, tuple[Status, str]]
    ) -> Iterator[Value]:
        """Values of one clip, or why there are none."""
        prompt, seed = one.wanted.prompt.id, one.wanted.seed
        if one.score is None:
            status, detail = troubles.get(one.key, (Status.SKIPPED, NOT_JUDGED))
            yield Value(
                metric=metric, prompt=prompt, seed=seed, key=one.key, status=status, detail=detail
            )
            return
        at, scorer = one.score.at, str(one.score.facts["scorer"])
        if one.strict is not None:
            yield Value(
                metric=metric + STRICT, value=one.strict, prompt=prompt, seed=seed, key=one.key,
                at=at, scorer=scorer,
            )  # fmt: skip
        value, status, detail = one.value(self.name), Status.OK, ""
        if one.score.failed:
            value, status, detail = None, Status.ERROR, one.score.failed
        elif not one.score.facts["valid"]:
            value, status, detail = None, Status.SKIPPED, LEFT_OUT
        yield Value(
            metric=metric, value=value, prompt=prompt, seed=seed, key=one.key, at=at,
            status=status, detail=detail, scorer=scorer,
        )  # fmt: skip


class FlickeringScorer(VBenchScorer):
    """Temporal flickering: over the static clips where the suite makes enough for the filter.

    Args:
        name: ``temporal_flickering``.
        judge: Who judges.
        prompts: Ids of the prompts whose clips it judges.
        static: The static filter; None on a suite that is not to be filtered.
    """

    def __init__(
        self, name: str, judge: VBenchJudge, prompts: Iterable[str], static: VBenchScorer | None
    ) -> None:
        super().__init__(name, judge, prompts)
        self.static = static

    def chosen(self, store: Store, task: CellTask) -> Flickering:
        """Which clips flickering is averaged over, and under which name."""
        static = None
        if self.static is not None:
            static = {
                one.id: bool(value)
                for one in self.static.judged(store, task)
                if (value := one.value(STATIC)) is not None
            }
        return flickering(self._scores(self.judged(store, task)), static)

    def values(
        self, store: Store, task: CellTask, troubles: Mapping[str, tuple[Status, str]]
    ) -> Iterator[Value]:
        """The value of each clip that counts, then the official aggregate."""
        clips = self.judged(store, task)
        if not clips:
            return
        chosen = self.chosen(store, task)
        counted = {score.clip for score in chosen.scores}
        for one in clips:
            if one.value(FLICKERING) is None or one.id in counted:
                yield from self._clip(one, chosen.metric, troubles)
        yield self._official(clips, chosen.scores, chosen.metric)

    def official(self, store: Store, task: CellTask) -> Value:
        """Over the clips that count."""
        chosen = self.chosen(store, task)
        return self._official(self.judged(store, task), chosen.scores, chosen.metric)


class VBenchTotals(Scorer):
    """Quality, semantic and total score, where all 16 dimensions have an official aggregate.

    Args:
        dimensions: The dimensions that are judged.
    """

    name = "vbench_totals"
    metrics = TOTAL_METRICS
    outside = True

    def __init__(self, dimensions: Iterable[VBenchScorer]) -> None:
        self.dimensions = [one for one in dimensions if one.name in DIMENSIONS]

    def open(self, store: Store, task: CellTask) -> int:
        """Nothing of its own is stored."""
        del store, task
        return 0

    def values(
        self, store: Store, task: CellTask, troubles: Mapping[str, tuple[Status, str]]
    ) -> Iterator[Value]:
        """The three scores, or nothing."""
        del troubles
        if {one.name for one in self.dimensions} != set(DIMENSIONS):
            return
        official = {}
        for one in self.dimensions:
            value = one.official(store, task)
            if (
                value.metric == OFFICIAL_PREFIX + one.name
            ):  # unfiltered flickering is no part of them
                official[one.name] = value.value
        found = totals(official)
        if not found.missing:
            scores = (found.quality, found.semantic, found.total)
            for metric, value_of in zip(TOTALS, scores, strict=True):
                detail = "official constants and aggregates"
                yield Value(metric=metric, value=value_of, detail=detail)


def places(clips: Iterable[ClipTask]) -> list[int]:
    """For each clip of a row, which of the clips of its prompt it is, from 0."""
    seen: dict[str, int] = {}
    found = []
    for clip in clips:
        seen[clip.prompt.id] = seen.get(clip.prompt.id, -1) + 1
        found.append(seen[clip.prompt.id])
    return found
