"""Columns: how the metrics of a run are shown, read off what the run says of each metric.

A metric of which nothing is known still appears, under its own name in the block of other metrics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.generate.generate import KERNEL_LINEARS
from harness.score.registry import builtin_metrics
from harness.spec import COST, OTHER, Metric

if TYPE_CHECKING:
    from harness.report.values import Values
    from harness.store.records import Run

MEAN = "mean"  # over prompts, with an interval
DELTA = "delta"  # paired difference to the fp row
CELL = "cell"  # one value for the whole row
LAYERS = "layers"  # three values of the row in one text
EXECUTION = "execution"  # what computes the row's linears

STEP = "step_latency_s"
SPEEDUP = "step_speedup"
LAYER_COUNT = "layers_quantized"


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A metric as one column shows it.

    Attributes:
        fact: What is known of the metric.
        kind: How the entry comes from the records.
    """

    fact: Metric
    kind: str

    @property
    def metric(self) -> str:
        """Name in the records."""
        return self.fact.name

    @property
    def block(self) -> str:
        """Block of the table that it stands in."""
        return self.fact.block

    @property
    def title(self) -> str:
        """Head of the column; a line break splits it where the renderer has several lines."""
        return self.fact.difference if self.kind == DELTA else self.fact.title

    @property
    def better(self) -> str:
        """``higher``, ``lower`` or ``none``; a difference is marked, not ranked."""
        return "none" if self.kind == DELTA else self.fact.better

    @property
    def shown(self) -> bool:
        """False for a column that only the CSV has."""
        return self.fact.difference_shown if self.kind == DELTA else self.fact.shown

    @property
    def interval(self) -> bool:
        """Whether the interval is printed; it is always in the CSV."""
        return self.kind == DELTA or (self.kind == MEAN and self.fact.interval)

    @property
    def key(self) -> str:
        """Name of the column in the CSV."""
        return f"{self.metric}_minus_fp" if self.kind == DELTA else self.metric

    @property
    def head(self) -> str:
        """Title with the direction that is better; of costs everybody knows it."""
        better = "none" if self.block == COST else self.better
        return self.title + {"higher": " ↑", "lower": " ↓"}.get(better, "")

    def number(self, value: float, *, end: bool = False) -> str:
        """Write a recorded value as the column shows it.

        Args:
            value: As recorded.
            end: Whether it is an end of the interval.
        """
        fact = self.fact
        digits = fact.digits
        if end and fact.interval_digits is not None:
            digits = fact.interval_digits
        shown = value * fact.scale
        sign = "+" if self.kind == DELTA and round(shown, digits) > 0 else ""
        if fact.significant:
            return f"{sign}{shown:#.{digits}g}".rstrip(".")
        if round(shown, digits) == 0:
            shown = 0.0  # no minus zero
        return f"{sign}{shown:.{digits}f}"


def known_metrics(run: Run) -> dict[str, Metric]:
    """What is known of metrics by name, in the order of the columns.

    A run says it of its own; of one that 0.1.0 wrote this package knows its own metrics.
    """
    if run.metrics:
        return {fact.name: fact for fact in run.metrics}
    from harness.artifact.stage import METRICS as ARTIFACT
    from harness.generate.generate import METRICS as CLIP
    from harness.measure.measure import METRICS as COST

    return {fact.name: fact for fact in (*builtin_metrics(), *ARTIFACT, *CLIP, *COST)}


def columns_of(facts: dict[str, Metric], values: Values) -> list[Column]:
    """Every column that the records of a run can fill, block by block as the facts stand."""
    spreads = {fact.spread for fact in facts.values() if fact.spread}
    found = [c for fact in facts.values() if fact.name not in spreads for c in _columns(fact)]
    for metric in values.metrics():
        if metric not in facts:
            first = values.of_metric(metric)[0]
            found += _columns(_unknown(metric, better=first.better, whole=not first.prompt))
    return found


def mean_columns(run: Run, values: Values) -> list[Column]:
    """The headline columns that have a value for each clip."""
    columns = columns_of(known_metrics(run), values)
    return [c for c in columns if c.fact.headline and c.kind == MEAN]


def _columns(fact: Metric) -> list[Column]:
    """The columns of one metric."""
    if fact.name == LAYER_COUNT:
        return [Column(fact=fact, kind=LAYERS)]
    if fact.name == KERNEL_LINEARS:
        return [Column(fact=fact, kind=EXECUTION)]
    if fact.whole:
        return [Column(fact=fact, kind=CELL)]
    mean = Column(fact=fact, kind=MEAN)
    return [mean, *([Column(fact=fact, kind=DELTA)] if fact.difference else [])]


def _unknown(name: str, *, better: str, whole: bool) -> Metric:
    """Facts of a metric that nobody knows."""
    return Metric(
        name=name, unit="", better=better, title=name.replace("_", " "), block=OTHER, whole=whole,
        digits=4, significant=True, interval=not whole,
    )  # fmt: skip
