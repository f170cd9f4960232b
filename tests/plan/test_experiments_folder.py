"""The experiments that ship with the repository can be planned as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.method import resolve_options
from harness.plan.experiment import Flags, resolve
from harness.plan.experiment_file import load_file
from harness.plan.registry import load_method
from harness.plan.suites import load_suite, refuse_overlap

FILES = sorted((Path(__file__).resolve().parents[2] / "experiments").glob("*.toml"))


def test_there_are_experiments() -> None:
    assert FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_names_options_and_suites_of_an_experiment_hold(path: Path) -> None:
    found = resolve(load_file(path), Flags())
    for row in found.rows:
        resolve_options(load_method(row.method.name), dict(row.method.options))
    calibration = load_suite(
        found.calibration_suite, limit=found.calibration_prompts, role="calibration"
    )
    refuse_overlap(load_suite(found.suite, limit=found.limit), calibration)
