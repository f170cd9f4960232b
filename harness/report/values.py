"""Records by row and metric: the lookup that tables and comparisons share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.spec import SIMULATED as SIMULATED
from harness.spec import Record, Status
from harness.store.records import by_prompt

if TYPE_CHECKING:
    from collections.abc import Iterable

    from harness.store.records import Run


class Values:
    """Index of a run's records.

    Args:
        records: All records of a run; a later record of the same clip and metric replaces an
            earlier one.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self._found: dict[tuple[str, str], dict[tuple[str, int], Record]] = {}
        for record in records:
            clips = self._found.setdefault((record.cell, record.metric), {})
            clips[record.prompt, record.seed] = record

    @classmethod
    def of(cls, run: Run) -> Values:
        """Index a run."""
        return cls(run.records)

    def metrics(self) -> list[str]:
        """Names of all metrics, in order of first appearance."""
        return list(dict.fromkeys(metric for _, metric in self._found))

    def records(self, cell: str, metric: str) -> list[Record]:
        """All records of a row and a metric."""
        return list(self._found.get((cell, metric), {}).values())

    def of_metric(self, metric: str) -> list[Record]:
        """All records of a metric, whatever the row."""
        return [r for (_, m), clips in self._found.items() if m == metric for r in clips.values()]

    def by_prompt(self, cell: str, metric: str) -> dict[str, float]:
        """Values of a row by prompt, seeds averaged; whole-row values are left out."""
        return by_prompt(
            (r.prompt, r.seed, r.value)
            for r in self.records(cell, metric)
            if r.status is Status.OK and r.value is not None and r.prompt
        )

    def single(self, cell: str, metric: str) -> Record | None:
        """The value of the whole row, None where there is none or it failed."""
        for record in self.records(cell, metric):
            if not record.prompt and record.status is Status.OK and record.value is not None:
                return record
        return None

    def trouble(self, cell: str, metric: str) -> Record | None:
        """The first record of a row and metric that is not ``ok``."""
        return next((r for r in self.records(cell, metric) if r.status is not Status.OK), None)

    def clips(self) -> tuple[list[str], list[int]]:
        """Prompt ids and seeds that occur, in order of first appearance."""
        seen = [k for clips in self._found.values() for k in clips if k[0]]
        return list(dict.fromkeys(p for p, _ in seen)), sorted({s for _, s in seen})
