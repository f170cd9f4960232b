"""What must hold for the prompts of the installed package; they are read, never copied."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.errors import UsageError
from harness.plan.suites import load_suite, refuse_overlap
from harness.vbench.dimensions import DIMENSIONS, EIGHT
from harness.vbench.names import official_name
from harness.vbench.suites import auxiliary, dimensions, load
from harness.vbench.wants import action_classes, action_label, dimensions_for

# Finding a package does not import it.
WHERE = "import importlib.util as u; print(u.find_spec('vbench').origin)"


@pytest.fixture(scope="module")
def full_info(scoring_python: Path) -> Path:
    answer = subprocess.run(
        [str(scoring_python), "-I", "-c", WHERE], check=True, capture_output=True, text=True
    )
    return Path(answer.stdout.strip()).parent / "VBench_full_info.json"


@pytest.fixture(scope="module")
def rows(full_info: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(full_info.read_text(encoding="utf-8"))
    return found


def test_suites_hold_the_list_with_what_each_dimension_asks(
    full_info: Path, rows: list[dict[str, Any]]
) -> None:
    suite = load("vbench-full", full_info)
    assert [p.text for p in suite.prompts] == [row["prompt_en"] for row in rows]
    for prompt, row in zip(suite.prompts, rows, strict=True):
        assert dimensions(prompt) == tuple(row["dimension"])
        for name in DIMENSIONS:
            assert auxiliary(prompt, name) == row.get("auxiliary_info", {}).get(name)


def test_the_eight_dimensions_are_wanted_as_often_as_the_papers_say(full_info: Path) -> None:
    suite = load("vbench-8", full_info)
    wants = dimensions_for(suite, EIGHT)
    assert not wants.refused
    assert not wants.partly
    count = Counter(name for names in wants.per_prompt.values() for name in names)
    assert (len(suite.prompts), sum(count.values())) == (251, 3 * 93 + 3 * 72 + 2 * 86)


@pytest.mark.parametrize("calibration", ["calib-general", "shapes-calib"])
def test_no_prompt_is_one_that_a_method_is_calibrated_on(full_info: Path, calibration: str) -> None:
    full, fitted = load("vbench-full", full_info), load_suite(calibration, role="calibration")
    refuse_overlap(full, fitted)
    with pytest.raises(UsageError, match="shares 1 prompts"):
        refuse_overlap(replace(full, prompts=(*full.prompts, fitted.prompts[0])), fitted)


def test_every_prompt_can_be_a_file_name_as_it_is(rows: list[dict[str, Any]]) -> None:
    names = [official_name(row["prompt_en"], 24) for row in rows]
    assert all(name.exact for name in names)
    assert [name.name for name in names] == [f"{row['prompt_en']}-24.mp4" for row in rows]
    # five clips of the longest: 210 bytes and "-0.mp4"
    assert max(len(official_name(row["prompt_en"], 0).name.encode()) for row in rows) == 216
    assert sum(not name.name.isascii() for name in names) == 1


def test_every_prompt_of_human_action_names_one_of_its_classes(
    full_info: Path, rows: list[dict[str, Any]]
) -> None:
    classes = action_classes(full_info)
    assert len(classes) == 400
    labels = [action_label(r["prompt_en"]) for r in rows if "human_action" in r["dimension"]]
    assert len(labels) == 100
    assert {label for label in labels if label not in classes} == set()
