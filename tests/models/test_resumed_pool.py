"""A recording that is ended goes on at the first prompt that is not whole, to the same bits."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from safetensors.torch import load_file

from harness.models.trajectories import CalibrationPool, record_pool
from harness.testing.conformance import PROMPTS, TINY_GEN, tiny_pipeline

if TYPE_CHECKING:
    from pathlib import Path

    from diffusers import DiffusionPipeline


class Ended(BaseException):
    """Stands for a kill."""


def record(pipeline: DiffusionPipeline, folder: Path, *, until: float = 2.0) -> list[str]:
    """Record, ended when the progress is ``until``; returns what was said."""
    folder.mkdir(exist_ok=True)
    said: list[str] = []

    def progress(share: float, text: str) -> None:
        said.append(text)
        if share >= until:
            raise Ended

    record_pool(pipeline, PROMPTS, TINY_GEN, seed=0, folder=folder, progress=progress)
    return said


def test_a_recording_ended_within_a_prompt_comes_to_the_same_pool(tmp_path: Path) -> None:
    pipeline = tiny_pipeline()
    said = record(pipeline, tmp_path / "whole")
    steps = TINY_GEN.steps
    assert len(said) == len(PROMPTS) * steps  # every step is a word
    for until in (0.1, 1.5 / len(PROMPTS), 0.99):
        with pytest.raises(Ended):
            record(pipeline, tmp_path / "ended", until=until)
    left = record(pipeline, tmp_path / "ended")
    assert left[0] == f"trajectory {len(PROMPTS)}/{len(PROMPTS)}, step 1"
    assert record(pipeline, tmp_path / "ended") == []
    names = {p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*.safetensors")}
    assert len(names) == len(PROMPTS) * (steps + 2)
    for name in names:
        exact, found = load_file(tmp_path / "whole" / name), load_file(tmp_path / "ended" / name)
        assert exact.keys() == found.keys()
        assert all(bool((exact[key] == found[key]).all()) for key in exact)
    exact, found = (
        json.loads((tmp_path / name / "pool.json").read_text()) for name in ("whole", "ended")
    )
    assert exact | {"seconds": 0} == found | {"seconds": 0}
    assert CalibrationPool.open(tmp_path / "ended").forwards == len(PROMPTS) * steps * 2
