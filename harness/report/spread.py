"""Spread over calibration seeds: how much of a row's distance from another is the luck of its draw.

A method whose rows differ by the calibration seed alone is the same method; a difference to another
row that is no larger than this spread says nothing.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.report.columns import mean_columns
from harness.report.values import Values
from harness.spec import Status

if TYPE_CHECKING:
    from harness.store.records import Run


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedSpread:
    """One metric over the calibration seeds of a row.

    Attributes:
        seeds: Calibration seeds, in the order of ``means``.
        means: Mean over the prompts, by seed.
        deviation: Standard deviation of the means.
    """

    metric: str
    seeds: tuple[int, ...]
    means: tuple[float, ...]
    deviation: float

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.means)


def seed_spread(run: Run, cell: str) -> list[SeedSpread]:
    """Spread of a row and those that differ from it by the calibration seed alone.

    Returns:
        One entry for each metric that two seeds or more have; empty where the run has one seed.
    """
    rows: list[dict[str, Any]] = run.experiment.get("rows", [])
    by_id = {f"{r['model']}--{r['label']}--{r['bits']}": r for r in rows}
    if cell not in by_id:
        return []
    same = {
        name: row["calibration_seed"]
        for name, row in by_id.items()
        if _but_seed(row) == _but_seed(by_id[cell])
    }
    done = {c.id for c in run.cells if c.status is Status.OK}
    values = Values.of(run)
    found = []
    for metric in [column.metric for column in mean_columns(run, values)]:
        means = {
            seed: statistics.fmean(by_prompt.values())
            for name, seed in same.items()
            if name in done and (by_prompt := values.by_prompt(name, metric))
        }
        if len(means) > 1:
            found.append(
                SeedSpread(
                    metric=metric,
                    seeds=tuple(means),
                    means=tuple(means.values()),
                    deviation=statistics.stdev(means.values()),
                )
            )
    return found


def _but_seed(row: dict[str, Any]) -> dict[str, Any]:
    """What a row is, without its calibration seed and the label that names it."""
    return {k: v for k, v in row.items() if k not in ("label", "calibration_seed")}
