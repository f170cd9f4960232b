"""Collect: the records of a run, asked of each stage, from the store alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.artifact.stage import artifact_values, report_of, widths_of_forms
from harness.generate.generate import clip_values, execution_values, row_execution
from harness.measure.measure import measured_values
from harness.spec import Record, Status
from harness.store.records import CellOutcome, by_prompt

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from harness.plan.cells import PlannedCell
    from harness.plan.plan import Plan
    from harness.spec import Metric, Value
    from harness.store.store import Entry, Store


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How a cell's work ended; the reason for a status other than ``ok``."""

    status: Status
    detail: str = ""


def outcome(planned: PlannedCell, ending: Ending, store: Store) -> CellOutcome:
    """The row as the table prints it."""
    cell, entry = planned.cell, _artifact(planned, store)
    report = report_of(entry)
    execution = row_execution(store, planned.task.clips)
    return CellOutcome(
        id=cell.id,
        model=cell.model.name,
        method=cell.method.name,
        label=cell.method.label,
        bits=cell.bits,
        suite=cell.suite,
        status=ending.status,
        detail=ending.detail,
        unquantized=planned.facts.unquantized,
        execution=_label(execution, report),
        linears=dict((execution or {}).get("layers", {})),
        reasons=dict((execution or {}).get("reasons", {})),
        report=report,
        artifact="" if entry is None else str(entry.folder),
    )


@dataclass(kw_only=True)
class Collector:
    """Reads what the store holds of a plan.

    Attributes:
        measures: Key of the measured set by model name, empty where nothing was measured.
        troubles: Status and reason of scores that this run tried and could not make, by key.
    """

    plan: Plan
    store: Store
    measures: Mapping[str, str] = field(default_factory=dict)
    troubles: Mapping[str, tuple[Status, str]] = field(default_factory=dict)
    _metrics: dict[str, Metric] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._metrics = self.plan.metrics

    def records(self, planned: PlannedCell) -> Iterator[Record]:
        """Every value of one cell."""
        for value in self._values(planned):
            yield self._record(planned, value)

    def _values(self, planned: PlannedCell) -> Iterator[Value]:
        """What each stage says of a cell, along the line."""
        task, entry = planned.task, _artifact(planned, self.store)
        for scorer in planned.scorers:
            yield from scorer.values(self.store, task, self.troubles)
        report = report_of(entry)
        steps = list(clip_values(self.store, task.clips, widths_of_forms(report)))
        yield from steps
        taken = by_prompt(
            (v.prompt, v.seed, v.value)
            for v in steps
            if v.metric == "clip_a_bits" and v.value is not None
        )
        yield from artifact_values(entry, taken)
        execution = row_execution(self.store, task.clips)
        yield from execution_values(self.store, task.clips, execution)
        reference = planned.waits_for or planned.cell.id
        yield from measured_values(
            self._measured(planned), planned.cell.id, reference, _label(execution, report)
        )

    def _measured(self, planned: PlannedCell) -> Entry | None:
        key = self.measures.get(planned.cell.model.name, "")
        return self.store.find("measure", key) if key else None

    def _record(self, planned: PlannedCell, value: Value) -> Record:
        """A value of a cell as the record of this run."""
        cell, metric = planned.cell, self._metrics[value.metric]
        return Record(
            run=self.plan.run,
            cell=cell.id,
            model=cell.model.name,
            method=cell.method.name,
            bits=cell.bits,
            suite=cell.suite,
            metric=value.metric,
            prompt=value.prompt,
            seed=value.seed,
            value=None if value.value is None else float(value.value),
            unit=metric.unit,
            better=metric.better,
            status=value.status,
            key=value.key,
            at=value.at,
            detail=value.detail,
            scorer=value.scorer,
        )


def _artifact(planned: PlannedCell, store: Store) -> Entry | None:
    wanted = planned.task.artifact
    return store.find("artifact", wanted.key) if wanted else None


def _label(execution: Mapping[str, Any] | None, report: Mapping[str, Any] | None) -> str:
    """How a row computes: as its clips say, else as its method's report does."""
    if execution is not None:
        return str(execution["label"])
    return "" if report is None else str(report["execution"])
