"""Spread over calibration seeds is read from the rows that differ in nothing else."""

from __future__ import annotations

import dataclasses
import statistics
from typing import TYPE_CHECKING, Any

import pytest

from harness.report.spread import seed_spread
from harness.report.values import Values
from tests.report.example import cell_id, make_run

if TYPE_CHECKING:
    from pathlib import Path

    from harness.store.records import Run


def row(label: str, seed: int, **more: Any) -> dict[str, Any]:
    facts = {"label": label, "method": "s2q", "version": 1, "options": {}, "bits": "w4a6"}
    return {**facts, "model": "shapes", "calibration_seed": seed, **more}


def seeded(folder: Path, *rows: dict[str, Any]) -> Run:
    run = make_run(folder)
    return dataclasses.replace(run, experiment={**run.experiment, "rows": list(rows)})


def test_rows_of_one_method_with_other_seeds_are_one_spread(tmp_path: Path) -> None:
    # The example's rows stand in for three seeds of one method, and a fourth with another option.
    rows = [row("rtn", 0), row("ptq4dit", 1), row("s2q", 2), row("rtn-gptq", 0, options={"a": 1})]
    run = seeded(tmp_path, *rows)
    found = {spread.metric: spread for spread in seed_spread(run, cell_id("s2q", "w4a6"))}
    psnr, values = found["psnr_db"], Values.of(run)
    means = [
        statistics.fmean(values.by_prompt(cell_id(label, "w4a6"), "psnr_db").values())
        for label in ("rtn", "ptq4dit", "s2q")
    ]
    assert psnr.seeds == (0, 1, 2)
    assert psnr.means == pytest.approx(means)
    assert psnr.mean == pytest.approx(statistics.fmean(means))
    assert psnr.deviation == pytest.approx(statistics.stdev(means))


def test_one_seed_has_no_spread(tmp_path: Path) -> None:
    run = seeded(tmp_path, row("s2q", 0), row("rtn", 1, method="rtn"))
    assert seed_spread(run, cell_id("s2q", "w4a6")) == []
    assert seed_spread(run, "shapes--absent--w4a6") == []


def test_a_row_that_failed_does_not_count(tmp_path: Path) -> None:
    run = make_run(tmp_path, failed_row=cell_id("rtn", "w4a6"))
    rows = [row("s2q", 0), row("rtn", 1)]
    run = dataclasses.replace(run, experiment={**run.experiment, "rows": rows})
    assert seed_spread(run, cell_id("s2q", "w4a6")) == []
