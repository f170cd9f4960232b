"""The entries of one column for all rows of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.report import columns as col
from harness.report.stats import MeanInterval, estimate, paired
from harness.report.table import TableEntry
from harness.report.values import SIMULATED, Values
from harness.spec import KERNEL, Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.report.columns import Column
    from harness.store.records import CellOutcome

REFERENCE_DETAIL = "reference"  # detail of fp's own fidelity records


class Entries:
    """Reads columns out of the records.

    Args:
        values: The run's records by row and metric.
        cells: The rows of one model.
        reference: Id of the fp row, empty where the run has none.
    """

    def __init__(self, *, values: Values, cells: Sequence[CellOutcome], reference: str) -> None:
        self.values = values
        self.cells = cells
        self.reference = reference
        self._prompts = {
            metric: max((len(values.by_prompt(c.id, metric)) for c in cells), default=0)
            for metric in values.metrics()
        }

    def column(self, column: Column) -> dict[str, TableEntry]:
        """TableEntry of each row by its id."""
        read = {
            col.MEAN: self._mean,
            col.DELTA: self._delta,
            col.CELL: self._whole,
            col.LAYERS: self._layers,
            col.EXECUTION: self._execution,
        }[column.kind]
        return {cell.id: read(cell, column) for cell in self.cells}

    def reasons(self, cell: CellOutcome, column: Column, entry: TableEntry) -> list[str]:
        """Footnotes an entry needs: prompts that are missing, a value that failed."""
        found = []
        trouble = self.values.trouble(cell.id, column.metric)
        wanted = self._prompts.get(column.metric, 0)
        if trouble is not None and trouble.detail != REFERENCE_DETAIL:
            why = f"{column.metric} of {cell.label} {cell.bits}: {trouble.status}"
            found.append(f"{why}: {trouble.detail}" if trouble.detail else why)
        elif column.kind in (col.MEAN, col.DELTA) and 0 < entry.n < wanted:
            found.append(f"{cell.label} {cell.bits}: {entry.n} of {wanted} prompts")
        return found

    def _mean(self, cell: CellOutcome, column: Column) -> TableEntry:
        found = estimate(list(self.values.by_prompt(cell.id, column.metric).values()))
        if found is not None:
            return _entry(found)
        trouble = self.values.trouble(cell.id, column.metric)
        if trouble is None:
            return TableEntry()
        if trouble.detail == REFERENCE_DETAIL:
            return TableEntry(text=REFERENCE_DETAIL)
        return TableEntry(text=str(trouble.status))

    def _delta(self, cell: CellOutcome, column: Column) -> TableEntry:
        if not self.reference or cell.id == self.reference:
            return TableEntry()
        found = estimate(
            paired(
                self.values.by_prompt(cell.id, column.metric),
                self.values.by_prompt(self.reference, column.metric),
            )
        )
        return TableEntry() if found is None else _entry(found)

    def _whole(self, cell: CellOutcome, column: Column) -> TableEntry:
        if column.fact.measured and self.is_simulated(cell, column.metric):
            return TableEntry(text=SIMULATED)
        record = self.values.single(cell.id, column.metric)
        if record is None:
            trouble = self.values.trouble(cell.id, column.metric)
            failed = trouble is not None and trouble.status is not Status.SKIPPED
            return (
                TableEntry(text=str(trouble.status))
                if trouble is not None and failed
                else TableEntry()
            )
        spread = self.values.single(cell.id, column.fact.spread) if column.fact.spread else None
        return TableEntry(value=record.value, spread=None if spread is None else spread.value)

    def _layers(self, cell: CellOutcome, column: Column) -> TableEntry:
        done, target, share = (
            self.values.single(cell.id, name)
            for name in ("layers_quantized", "layers_target", "weights_quantized")
        )
        if cell.unquantized or done is None or done.value is None:
            return TableEntry()
        text = f"{done.value:.0f}"
        if target is not None and target.value is not None:
            text += f"/{target.value:.0f}"
        if share is not None and share.value is not None:
            # 99.96 % must not read as all of them.
            shown = f"{100 * share.value:.1f}".removesuffix(".0")
            text += f" ({'<100' if shown == '100' and share.value < 1 else shown} %)"
        return TableEntry(text=text, value=done.value)

    def _execution(self, cell: CellOutcome, column: Column) -> TableEntry:
        if not self.values.of_metric(column.metric):  # a run that says nothing of it
            return TableEntry()
        record = self.values.single(cell.id, column.metric)
        text = "" if cell.unquantized else cell.execution.removeprefix(KERNEL)
        return TableEntry(text=text, value=None if record is None else record.value)

    def is_simulated(self, cell: CellOutcome, metric: str) -> bool:
        """Whether a measured value of this row says nothing about low-bit execution."""
        record = self.values.single(cell.id, metric)
        return cell.execution == SIMULATED or (record is not None and SIMULATED in record.detail)


def _entry(found: MeanInterval) -> TableEntry:
    return TableEntry(value=found.mean, low=found.low, high=found.high, n=found.n)
