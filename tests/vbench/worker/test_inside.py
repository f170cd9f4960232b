from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from harness.vbench.dimensions import DIMENSIONS
from harness.vbench.interpreter import FOREIGN
from tests.vbench import made_clips
from tests.vbench.driving import run_script

SCRIPT = Path(__file__).with_name("inside.py")
CHECKS = [
    node.name
    for path in sorted(SCRIPT.parent.glob("check_*.py"))
    for node in ast.parse(path.read_text(encoding="utf-8")).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("check_")
]


@pytest.fixture(scope="module")
def outcomes(scoring_python, random_weights, tmp_path_factory):
    clip = made_clips.write(tmp_path_factory.mktemp("inside") / "clip.mp4", made_clips.moving())
    printed = run_script(scoring_python, SCRIPT, random_weights, clip)
    return json.loads(printed.splitlines()[-1])


@pytest.mark.parametrize("check", CHECKS)
def test_in_the_scoring_interpreter(outcomes, check):
    assert outcomes[check] == "", outcomes[check]


def test_both_sides_of_the_seam_agree_how_many_frames_a_dimension_needs(monkeypatch):
    # This module of the worker needs nothing but the standard library.
    monkeypatch.syspath_prepend(str(FOREIGN))
    from vbench_worker.judges import FRAMES

    assert {name: FRAMES.get(name, 1) for name in DIMENSIONS} == {
        name: dimension.frames for name, dimension in DIMENSIONS.items()
    }
