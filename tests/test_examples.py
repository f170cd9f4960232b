"""The examples, and the README's lines of Python, run as they stand."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
SAID = {
    "layer_errors": r"transformer_blocks\.\d.*all 48 layers: 0\.\d+ on average",
    "my_method": r"48 layers, 4\.\d+ bits a weight",
    "my_metric": r"metric +flicker +flicker_added +psnr_db.*rtn +shapes-eval-000 +[\d.]+ +-?[\d.]+",
    "quantize_pipeline": r"4\.\d MB instead of 14\.\d MB\nPSNR [1-9]\d\.\d dB",
    "run_experiment": r"every row is there.*rtn +w4a4 +[\d.]+ +[\d.]+ .*clips are in \S+/runs/",
}
"""What each prints; a file without an entry fails."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """One store for all: what one of them made, another one finds."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def elsewhere(home, tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.setenv("HARNESS_HOME", str(home))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_runs_as_it_stands(path, elsewhere, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)  # as `python examples/NAME.py` has it
    runpy.run_path(str(path), run_name="__main__")
    assert re.search(SAID[path.stem], capsys.readouterr().out, flags=re.DOTALL)
    assert {p.name for p in elsewhere.iterdir()} <= {"runs"}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*")), ids=lambda path: path.stem)
def test_an_example_is_short_and_says_what_it_shows_and_how_long_it_takes(path):
    if path.name == "__pycache__":
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    assert path.suffix == ".py"
    assert len(lines) < 60
    assert re.search(r"^Takes .* on two cores\.", "\n".join(lines), flags=re.MULTILINE)


def test_every_example_that_is_known_is_there():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(SAID)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["show", "method", "my_method:Shrunk"], "keep"),
        (["run", "--methods", "rtn", "--metrics", "my_metric:Flicker", "--dry-run"], "run folder"),
    ],
    ids=["method", "metric"],
)
def test_the_command_line_takes_a_file_by_module_and_class(home, tmp_path, command, said):
    done = subprocess.run(
        [sys.executable, "-P", "-m", "harness.cli.main", *command],
        env={**os.environ, "PYTHONPATH": str(EXAMPLES), "HARNESS_HOME": str(home)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert said in done.stdout


@pytest.mark.slow
def test_the_lines_of_the_readme_run_as_they_stand(elsewhere, capsys):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    [lines] = re.findall(r"```python\n(import harness\n.*?)```", text, flags=re.DOTALL)
    found: dict[str, object] = {}
    exec(compile(lines, "README.md", "exec"), found)
    printed = capsys.readouterr().out
    assert re.search(r"^4\.\d+ bits a weight$", printed, flags=re.MULTILINE)
    assert re.search(r"^rtn +w4a4 +[\d.]+$", printed, flags=re.MULTILINE)
    assert len(found["frames"]) == 17
    assert (elsewhere / "shapes-rtn-w4a6" / "artifact.json").is_file()
