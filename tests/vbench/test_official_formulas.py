"""Our formula of the official aggregate against the official loops, on clips of unequal length."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from harness.vbench.aggregate import FORMULA, ClipScore, aggregate
from harness.vbench.environment import worker_environment

SCRIPT = Path(__file__).with_name("official_formulas.py")
CHECKED = (
    "subject_consistency",
    "background_consistency",
    "temporal_flickering",
    "motion_smoothness",
    "dynamic_degree",
    "imaging_quality",
    "appearance_style",
    "scene",
    "object_class",
    "multiple_objects",
    "spatial_relationship",
    "color",
)
WEIGHTED = {name for name, words in FORMULA.items() if "all clips together" in words}


@pytest.fixture(scope="module")
def official(scoring_python: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    weights = tmp_path_factory.mktemp("weights")
    answer = subprocess.run(
        [str(scoring_python), "-P", str(SCRIPT), str(weights), *CHECKED],
        check=False,
        capture_output=True,
        text=True,
        env=worker_environment() | {"VBENCH_CACHE_DIR": str(weights)},
        cwd=weights,
    )
    assert answer.returncode == 0, answer.stderr
    found: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", CHECKED)
def test_the_official_aggregate_is_that_of_the_official_loop(
    official: dict[str, Any], name: str
) -> None:
    clips = official[name]["clips"]
    scores = [
        ClipScore(clip=path, prompt=path[:4], sample=0, value=value, weight=weight)
        for path, (value, weight) in clips.items()
    ]
    found = aggregate(scores)
    assert len({score.value for score in scores}) > 1
    # the official running sums round, ours do not
    assert found.official == pytest.approx(official[name]["official"], rel=1e-12)


def test_weights_matter_where_the_formula_says_so(official: dict[str, Any]) -> None:
    assert len(WEIGHTED) == 7
    for name in WEIGHTED:
        clips = official[name]["clips"]
        plain = sum(value for value, _ in clips.values()) / len(clips)
        assert plain != pytest.approx(official[name]["official"], rel=1e-6)


def test_the_official_color_leaves_out_clips_without_the_object(official: dict[str, Any]) -> None:
    assert set(official["color"]["clips"]) == {"/v/a-0.mp4", "/v/a-1.mp4"}
