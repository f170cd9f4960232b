"""Paired differences between rows: of one run, or of two runs on the same suite and cohort."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.errors import HarnessError, unknown_name
from harness.report.columns import mean_columns
from harness.report.stats import Test, holm_family, paired
from harness.report.values import Values
from harness.spec import FP, Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.store.records import CellOutcome, Run

BETTER, WORSE, DIFFERS, TIE = "better", "worse", "differs", "tie"


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """A row against the reference row in one metric.

    Attributes:
        row: Label of the row, with the run's id where it comes from the other run.
        bits: Widths of the row.
        reference: Label of the row it is held against.
        reference_bits: Widths of the reference row.
        better: Direction of the metric.
        test: Row minus reference over the prompts that both have.
    """

    model: str
    metric: str
    row: str
    bits: str
    reference: str
    reference_bits: str
    better: str
    test: Test

    @property
    def verdict(self) -> str:
        """``better`` or ``worse`` where the row is separated from the reference, else ``tie``.

        ``differs`` where the metric has no better direction.
        """
        if not self.test.separated:
            return TIE
        if self.better not in ("higher", "lower"):
            return DIFFERS
        gained = (self.test.difference.mean > 0) == (self.better == "higher")
        return BETTER if gained else WORSE


def compare(
    run: Run,
    *,
    reference: str,
    metrics: Sequence[str] = (),
    bits: str = "",
    other: Run | None = None,
) -> list[Difference]:
    """Hold every row against the named one.

    A quantized reference meets the quantized rows of its own width and, where ``fp`` has the
    metric, ``fp``; an unquantized reference meets all rows. Holm adjusts over the rows that meet
    one reference row in one metric.

    Args:
        run: The run that has the reference row.
        reference: Label of the reference row.
        metrics: Metric names; the headline ones where empty.
        bits: Only reference rows of this width; all where empty.
        other: A second run whose rows are compared instead.

    Raises:
        UsageError: The row, the metric or the width is unknown.
        HarnessError: The two runs are not comparable, or no prompt is common.
    """
    if other is not None:
        check_comparable(run, other)
    bases = _references(run, reference, bits)
    values, others = Values.of(run), Values.of(other or run)
    found: list[Difference] = []
    for metric in _metrics(run, values, metrics):
        for base in bases:
            found += _against(base, metric, values, others, other or run, other is not None)
    if not found:
        raise HarnessError(
            f"nothing to compare with row '{reference}'",
            "the other rows failed, or have no value of these metrics on the same prompts",
        )
    return found


def check_comparable(run: Run, other: Run) -> None:
    """Refuse two runs whose clips are not paired.

    Raises:
        HarnessError: Suite, suite digest or cohort differ.
    """
    for what, mine, theirs in (
        ("prompt suites", _suites(run), _suites(other)),
        ("cohorts", run.cohort, other.cohort),
    ):
        if mine != theirs:
            keys = sorted(k for k in {*mine, *theirs} if mine.get(k) != theirs.get(k))
            raise HarnessError(
                f"runs {run.id} and {other.id} have different {what} ({', '.join(keys)})",
                "paired values need the same prompts, device and versions; run one of them again",
            )


def _suites(run: Run) -> dict[str, object]:
    """Digest of each evaluation suite."""
    return {k: v.get("digest") for k, v in run.suites.items() if v.get("role") != "calibration"}


def _references(run: Run, label: str, bits: str) -> list[CellOutcome]:
    """The rows of that label, of one width where given."""
    named = [c for c in run.cells if c.label == label]
    if not named:
        raise unknown_name("row", label, {c.label for c in run.cells})
    found = [c for c in named if not bits or c.bits == bits]
    if not found:
        raise unknown_name(f"width of row '{label}'", bits, {c.bits for c in named})
    return found


def _metrics(run: Run, values: Values, chosen: Sequence[str]) -> list[str]:
    """The metrics asked for, or the headline ones that the run has."""
    known = [m for m in values.metrics() if _per_clip(values, m)]
    headline = [column.metric for column in mean_columns(run, values)]
    for metric in chosen:
        if metric not in known:
            raise unknown_name("metric", metric, known)
    return list(dict.fromkeys(chosen)) or [m for m in headline if m in known] or known


def _per_clip(values: Values, metric: str) -> bool:
    return any(r.prompt for r in values.of_metric(metric))


def _against(
    base: CellOutcome, metric: str, values: Values, others: Values, run: Run, foreign: bool
) -> list[Difference]:
    """All rows of ``run`` that meet the reference row, as one family."""
    reference = values.by_prompt(base.id, metric)
    rows = [
        cell
        for cell in run.cells
        if cell.model == base.model
        and cell.status is Status.OK
        and (foreign or cell.id != base.id)
        and (base.unquantized or cell.bits == base.bits or cell.method == FP)
        and others.by_prompt(cell.id, metric).keys() & reference.keys()
    ]
    tests = holm_family([paired(others.by_prompt(c.id, metric), reference) for c in rows])
    better = next((r.better for r in values.of_metric(metric)), "none")
    return [
        Difference(
            model=base.model,
            metric=metric,
            row=f"{cell.label} ({run.id})" if foreign else cell.label,
            bits=cell.bits,
            reference=base.label,
            reference_bits=base.bits,
            better=better,
            test=test,
        )
        for cell, test in zip(rows, tests, strict=True)
        if test is not None
    ]
