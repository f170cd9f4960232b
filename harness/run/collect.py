"""Collect: the records of a run, read from the store alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.generate.generate import FACTS_FILE
from harness.measure.measure import BUSY, MEASURE_FILE
from harness.report.stats import by_prompt
from harness.score.distance import fvd_to_reference
from harness.score.names import FVD
from harness.score.scorers import (
    EXTRAS,
    FVD_METRIC,
    SCORERS,
    extra_missing,
    find_score,
    lpips_missing,
)
from harness.score.units import unit
from harness.score.vbench_records import Judged, judged_cautions
from harness.spec import Record, Status
from harness.store.records import CellOutcome

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from harness.plan.cells import PlannedCell
    from harness.plan.plan import Plan
    from harness.store.store import Entry, Store
    from harness.task import ClipTask

REPORT_FILE = "report.json"
STEPS = "steps_by_choice"
"""In a clip's facts: the form that its step policy chose at each step, in order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How a cell's work ended; the reason for a status other than ``ok``."""

    status: Status
    detail: str = ""


def outcome(planned: PlannedCell, ending: Ending, store: Store) -> CellOutcome:
    """The row as the table prints it."""
    cell, artifact = planned.cell, planned.task.artifact
    entry = store.find("artifact", artifact.key) if artifact else None
    report = None if entry is None else entry.json(REPORT_FILE)
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
        execution="" if report is None else str(report["execution"]),
        report=report,
        artifact="" if entry is None else str(entry.folder),
    )


@dataclass(kw_only=True)
class Collector:
    """Reads what the store holds of a plan.

    Attributes:
        measures: Key of the measured set by model name, empty where nothing was measured.
        troubles: Status and reason of what VBench could not be asked for, by score key.
    """

    plan: Plan
    store: Store
    measures: Mapping[str, str]
    troubles: Mapping[str, tuple[Status, str]] = field(default_factory=dict)
    _judged: list[Judged] = field(default_factory=list)

    def records(self, planned: PlannedCell) -> Iterator[Record]:
        """Every value of one cell."""
        yield from self._clip_records(planned)
        yield from self._judged_records(planned)
        steps = list(self._step_records(planned))
        yield from steps
        yield from self._artifact_records(planned, steps)
        yield from self._measured_records(planned)
        if lpips_missing() and planned.waits_for:
            yield self._record(
                planned, "lpips", None, status=Status.SKIPPED, detail=lpips_missing()
            )
        yield from self._extra_records(planned)

    def cautions(self) -> list[str]:
        """What must be said of VBench's values among the records read so far."""
        return judged_cautions(self._judged, self.plan)

    def _extra_records(self, planned: PlannedCell) -> Iterator[Record]:
        """What was asked for and is not there, and the distance of the row from the reference."""
        clips = len(planned.task.clips)
        for name in self.plan.experiment.metrics or ():
            if name in EXTRAS and name not in planned.task.scorers:
                why = extra_missing(name, clips)
                for metric in EXTRAS[name]:
                    yield self._record(planned, metric, None, status=Status.SKIPPED, detail=why)
        if FVD in planned.task.scorers and planned.waits_for:
            yield self._record(planned, FVD_METRIC, **fvd_to_reference(planned, self.store))

    def _judged_records(self, planned: PlannedCell) -> Iterator[Record]:
        row = Judged(plan=self.plan, store=self.store, planned=planned, troubles=self.troubles)
        self._judged.append(row)
        for metric, value, facts in row.records():
            yield self._record(planned, metric, value, **facts)

    def _record(
        self,
        planned: PlannedCell,
        metric: str,
        value: float | None,
        *,
        clip: ClipTask | None = None,
        status: Status = Status.OK,
        key: str = "",
        at: str = "",
        detail: str = "",
        scorer: str = "",
    ) -> Record:
        cell = planned.cell
        measured_in, better = unit(metric)
        return Record(
            run=self.plan.run,
            cell=cell.id,
            model=cell.model.name,
            method=cell.method.name,
            bits=cell.bits,
            suite=cell.suite,
            metric=metric,
            prompt=clip.prompt.id if clip else "",
            seed=clip.seed if clip else -1,
            value=None if value is None else float(value),
            unit=measured_in,
            better=better,
            status=status,
            key=key,
            at=at,
            detail=detail,
            scorer=scorer,
        )

    def _clip_records(self, planned: PlannedCell) -> Iterator[Record]:
        for wanted in planned.task.clips:
            clip = self.store.find("clip", wanted.clip.key)
            if clip is None:
                continue  # the cell's own status says why
            reference = self.store.find("clip", wanted.reference) if wanted.reference else None
            for name in planned.task.scorers:
                yield from self._scores(planned, wanted, name, clip, reference)

    def _scores(
        self,
        planned: PlannedCell,
        wanted: ClipTask,
        name: str,
        clip: Entry,
        reference: Entry | None,
    ) -> Iterator[Record]:
        scorer = SCORERS[name]
        found, detail, status = None, "", Status.SKIPPED
        if scorer.paired and not wanted.reference:
            detail = "reference"
        elif scorer.paired and reference is None:
            detail = "its reference clip is missing"
        else:
            found = find_score(self.store, scorer, wanted.prompt, clip, reference)
            detail = "not scored yet" if found is None else str(found["failed"])
            status = Status.SKIPPED if found is None else Status.ERROR
        for metric in scorer.metrics:
            if found is not None and metric in found["values"]:
                value, key, at = found["values"][metric], found["key"], found["at"]
                yield self._record(planned, metric, value, clip=wanted, key=key, at=at)
            else:
                yield self._record(planned, metric, None, clip=wanted, status=status, detail=detail)

    def _step_records(self, planned: PlannedCell) -> Iterator[Record]:
        """Steps by form and the true activation bits of every clip of a row with a step policy."""
        entry = self._artifact(planned)
        widths = () if entry is None else widths_of_forms(entry.json(REPORT_FILE))
        for wanted in planned.task.clips if widths else ():
            clip = self.store.find("clip", wanted.clip.key)
            trace = [] if clip is None else clip.json(FACTS_FILE).get(STEPS, [])
            if clip is None or not trace:
                continue
            facts = {"clip": wanted, "key": clip.key, "at": clip.manifest["at"]}
            for form in range(len(widths)):
                yield self._record(planned, f"steps_form_{form}", trace.count(form), **facts)
            mean = sum(widths[form] for form in trace) / len(trace)
            yield self._record(planned, "clip_a_bits", mean, **facts)

    def _artifact(self, planned: PlannedCell) -> Entry | None:
        wanted = planned.task.artifact
        return self.store.find("artifact", wanted.key) if wanted else None

    def _artifact_records(self, planned: PlannedCell, steps: Sequence[Record]) -> Iterator[Record]:
        entry = self._artifact(planned)
        if entry is None:
            return
        values, details = report_values(entry.json(REPORT_FILE)), {}
        taken = by_prompt(
            (r.prompt, r.seed, r.value)
            for r in steps
            if r.metric == "clip_a_bits" and r.value is not None
        )
        if taken:
            # What the policy did on these clips, not what it did when the method was calibrated.
            values["avg_a_bits"] = sum(taken.values()) / len(taken)
            details["avg_a_bits"] = "over the sampling steps of the evaluation clips"
        for metric, value in values.items():
            detail, at = details.get(metric, ""), entry.manifest["at"]
            yield self._record(planned, metric, value, key=entry.key, at=at, detail=detail)

    def _measured_records(self, planned: PlannedCell) -> Iterator[Record]:
        key = self.measures.get(planned.cell.model.name, "")
        entry = self.store.find("measure", key) if key else None
        if entry is None:
            return
        made = self._artifact(planned)
        detail = "" if made is None else str(made.json(REPORT_FILE)["execution"])
        for metric, value in entry.json(MEASURE_FILE)["values"].get(planned.cell.id, {}).items():
            at = entry.manifest["at"]
            yield self._record(planned, metric, value, key=key, at=at, detail=detail)


def timing_warnings(store: Store, measures: Mapping[str, str]) -> list[str]:
    """Sets of timings that were taken while something else used the machine."""
    found = []
    for model, key in measures.items():
        entry = store.find("measure", key)
        if entry is not None and (busy := entry.json(MEASURE_FILE)["busy"]) > BUSY:
            found.append(
                f"the machine was {busy:.0%} busy with other work when {model} was timed: its "
                "latencies are not to be relied on"
            )
    return found


def widths_of_forms(report: Mapping[str, Any]) -> tuple[float, ...]:
    """Mean activation bits of each form of a row's step policy; empty without one."""
    return tuple(report["footprint"].get("avg_a_bits_by_choice") or ())


def report_values(report: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a quantization report, its footprint included."""
    footprint = report["footprint"]
    return {
        "artifact_bytes": footprint["artifact_bytes"],
        "compression": footprint["fp16_bytes"] / footprint["artifact_bytes"],
        "avg_w_bits": footprint["avg_w_bits"],
        "avg_a_bits": footprint["avg_a_bits"],
        "layers_quantized": len(report["layers"]),
        "layers_target": footprint["target_layers"],
        "weights_quantized": footprint["quantized_parameters"] / footprint["target_parameters"],
        "calibration_s": report["seconds"],
        "calibration_forwards": report["calibration_forwards"],
        "calibration_samples": report["calibration_samples"],
    }
