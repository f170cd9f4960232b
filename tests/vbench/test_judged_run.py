"""A run that is judged by the real package, on a dimension that needs no weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from harness.generate.generate import ENCODER, FACTS_FILE, LATENTS_FILE, LOSSLESS_FILE, MP4_FILE
from harness.generate.video import read_av, write_mp4
from harness.plan.experiment import Flags, resolve
from harness.plan.experiment_file import ExperimentFile
from harness.plan.plan import make_plan
from harness.spec import Status
from harness.store.store import Store
from tests.doubles import write_model_folder
from tests.fake_run import Quiet, fake_run

ROOT = Path(__file__).resolve().parents[2]
METRIC = "temporal_flickering_unfiltered"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    write_model_folder(tmp_path / "model")
    (tmp_path / "p.txt").write_text("noise that flickers\na grey still\n")
    return tmp_path


def publish_clips(place: Path, flags: Flags, file: ExperimentFile) -> None:
    """Put real videos where the run expects the clips of its rows: one of noise, one of grey."""
    store = Store()
    for index, cell in enumerate(make_plan(resolve(file, flags), store).cells):
        chance = np.random.default_rng(index)
        for clip in cell.task.clips:
            frames = np.full((6, 64, 64, 3), 90, dtype=np.uint8)
            if "noise" in clip.prompt.text:
                frames[:] = chance.integers(0, 255, frames.shape, dtype=np.uint8)
            with store.build("clip", clip.clip.key, clip.clip.inputs) as folder:
                write_mp4(folder / MP4_FILE, frames, fps=8)
                (folder / LOSSLESS_FILE).write_text(clip.clip.key)
                (folder / LATENTS_FILE).write_text(clip.clip.key)
                (folder / FACTS_FILE).write_text(json.dumps({ENCODER: {"codec": "libx264"}}))


def test_flickering_in_the_records_is_that_of_the_files(place: Path, scoring_python: Path) -> None:
    flags = Flags(
        models=(str(place / "model"),),
        methods=("tests.doubles:Toy",),
        suite=str(place / "p.txt"),
        out=place / "out",
        baselines=False,
    )
    file = ExperimentFile.model_validate(
        {
            "envs": {"vbench": {"python": str(scoring_python)}},
            "vbench": {"shards": 1},
            "execution": {"measure": False},
        }
    )
    publish_clips(place, flags, file)
    run, _ = fake_run(flags, file)
    records = [r for r in run.records if r.metric == METRIC]
    assert len(records) == 4
    for record in records:
        frames = read_av(place / "out" / "clips" / record.cell / f"{record.prompt}-s0.mp4")
        steps = np.abs(np.diff(frames.astype(np.float64), axis=0)).mean()
        assert record.status is Status.OK
        assert record.value == pytest.approx(1 - steps / 255, abs=1e-6)
        assert record.scorer.startswith("vbench 0.1.5, no weights, ")
    still = [r.value for r in records if r.prompt == "p-001"]
    assert still == [1.0, 1.0]
    (counts,) = run.provenance["judges"]
    assert counts["decodes"] == 3  # two rows share the bytes of the still
    monitor = Quiet()
    fake_run(flags, file, monitor)
    assert monitor.seen == []
