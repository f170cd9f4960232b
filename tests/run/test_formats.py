"""``harness run --model FOLDER`` works for a folder in the file format of each family."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.spec import Status
from harness.store.records import load_run
from tests.models.real_folders import FORMATS, experiment, pickled

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("a red circle\n")
    return tmp_path


def run(family: str) -> subprocess.CompletedProcess[str]:
    Path("e.toml").write_text(experiment(family))
    command = [sys.executable, "-c", "from harness.cli.main import main; main()", "run"]
    command += ["--config", "e.toml", "--model", "model", "--suite", "p.txt", "--out", "out"]
    return subprocess.run(
        [*command, "--methods", "rtn", "--no-baselines"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("family", FORMATS)
def test_one_command_takes_a_folder_in_a_real_format_to_the_table(place: Path, family: str) -> None:
    FORMATS[family](place / "model")
    done = run(family)
    assert done.returncode == 0, done.stdout + done.stderr
    loaded = load_run(place / "out")
    assert {cell.label: cell.status for cell in loaded.cells} == {
        "fp": Status.OK,
        "rtn": Status.OK,
    }


def test_pickled_weights_are_refused_and_no_worker_starts(place: Path) -> None:
    pickled(place / "model")
    done = run("cogvideox")
    assert done.returncode == 1
    message, hint = done.stderr.strip().splitlines()
    assert message.startswith("error: ")
    assert "text_encoder" in message
    assert "pytorch_model.bin" in message
    assert hint.startswith("hint: ")
    assert not (place / "out").exists()
    assert not (place / "home" / "store").exists()
