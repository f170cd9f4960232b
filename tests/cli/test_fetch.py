from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from harness.cli import doctor_vbench, fetch
from harness.cli.main import main
from harness.vbench import build, environment, pip, weights
from harness.vbench.dimensions import DIMENSIONS, EXTRA_WEIGHTS
from tests.vbench.fake_environment import (
    VBENCH_FILES,
    use_index,
    use_worker,
    write_environment,
    write_wheel,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return use_worker(tmp_path, monkeypatch)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "wheels").mkdir()
    write_wheel(tmp_path / "wheels", "vbench", "0.1.5", VBENCH_FILES)
    with use_index(tmp_path / "wheels", "vbench==0.1.5\n", monkeypatch):
        yield


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return int(caught.value.code or 0)


@pytest.mark.usefixtures("index")
def test_a_build_says_first_what_it_installs_and_last_what_is_there(capsys):
    assert call("fetch", "vbench") == 0
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert lines[0].startswith("what      vbench 0.1.5")
    assert lines[2] == f"where     {environment.folder()}"
    assert lines[3].startswith("size ")
    assert lines[5].startswith("licences  vbench: Apache-2.0")
    assert lines[-1].startswith("vbench 0.1.5, torch missing")
    assert ": built in " in lines[-1]
    # No terminal: a line when something else begins, none for every step of a bar.
    progress = told.err.splitlines()
    assert progress[0].startswith("  0%  virtual environment with ")
    assert progress[-1] == "100%  done"
    assert len(progress) <= 5

    assert call("fetch", "vbench") == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{environment.find().line}: already built in {environment.folder()}"
    ]


def test_the_licences_are_those_of_the_locked_versions():
    locked = pip.pins(build.LOCK)
    said = re.findall(r"(\S+) (\d+\.\d+\.\d+) ", "\n".join(fetch.LICENCES))
    assert said == [("pyiqa", locked["pyiqa"])]  # its licence has changed between versions
    named = re.findall(r"[a-z][\w-]+(?=[,:])", " ".join(fetch.LICENCES))
    assert {"vbench", "easydict", "openai-clip", "torch", "decord"} <= set(named) & set(locked)


def test_an_existing_interpreter_is_registered(capsys, tmp_path):
    python = write_environment(tmp_path / "scoring", vbench="0.1.4")
    assert call("fetch", "vbench", "--use", str(python)) == 0
    told = capsys.readouterr()
    assert told.out.endswith(f"scoring with {python}\n")
    assert told.err == "warning: vbench is 0.1.4; only 0.1.5 was tested\n"
    assert environment.find().python == python


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["vbnch"], "command 'vbnch' is unknown", "did you mean vbench?"),
        (["vbench", "--use", sys.executable], "it has no package 'vbench'", "harness fetch vbench"),
        (["vbench", "--use", "/no/python"], "there is no such program", "harness fetch vbench"),
        (["vbench", "--python", "/no/python"], "there is no such program", "name a Python 3.11"),
        (["vbench", "--use", "x", "--force"], "--use builds nothing", "leave out"),
        (["vbench", "--use", "x", "--python", "y"], "--use builds nothing", "leave out"),
    ],
)
def test_a_mistake_is_two_lines_and_exit_2(capsys, arguments, message, hint):
    assert call("fetch", *arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2
    assert message in lines[0]
    assert hint in lines[1]
    assert not environment.registration().exists()


@pytest.mark.parametrize("what", ["vbench", "vbench-weights", "clip-weights", "fvd-weights"])
def test_everything_that_can_be_fetched_has_help(capsys, what):
    assert call("fetch", what, "--help") == 0
    assert f"Usage: harness fetch {what}" in capsys.readouterr().out


def test_a_clip_checkpoint_is_registered_from_a_folder_or_refused(capsys, tmp_path):
    assert call("fetch", "clip-weights", "--from", str(tmp_path)) == 2
    message = capsys.readouterr().err
    assert str(tmp_path) in message and message.count("\n") == 2


def test_help_imports_nothing_heavy():
    code = (
        "import sys, atexit\n"
        "heavy = {'torch', 'numpy', 'rich', 'pydantic'}\n"
        "atexit.register(lambda: print('HEAVY', sorted(heavy & set(sys.modules))))\n"
        "from harness.cli.main import main; main(sys.argv[1:])"
    )
    for arguments in (["fetch", "--help"], ["fetch", "vbench", "--help"]):
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.strip().endswith("HEAVY []")


def test_the_doctor_says_how_to_get_vbench_and_finds_nothing_wrong():
    assert doctor_vbench.rows() == [
        ("vbench", "vbench is not installed: harness fetch vbench", None)
    ]


def test_the_doctor_has_a_row_for_every_dimension(tmp_path):
    environment.register(str(write_environment(tmp_path / "scoring")))
    rows = {name: (state, fine) for name, state, fine in doctor_vbench.rows()}
    assert set(DIMENSIONS) | set(EXTRA_WEIGHTS) <= rows.keys()
    assert rows["vbench"][0].startswith("vbench 0.1.5")
    assert rows["vbench compat"] == ("measure applied", True)
    assert rows["temporal_flickering"] == ("can be computed", True)
    assert rows["color"] == (doctor_vbench.NO_DETECTOR, None)
    assert rows["human_action"] == ("cannot run: No module named 'timm'", None)
    assert rows["scene"][0].endswith("harness fetch vbench-weights --dimension scene")
    assert rows["scene"][1] is None

    for file in weights.missing(DIMENSIONS["motion_smoothness"].weights, weights.folder()):
        path = weights.folder() / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"weights")
    rows = {name: (state, fine) for name, state, fine in doctor_vbench.rows()}
    assert rows["motion_smoothness"] == ("can be computed", True)


def test_the_doctor_fails_where_a_measure_does_not_hold(tmp_path, worker):
    environment.register(str(write_environment(tmp_path / "scoring")))
    program = worker / "vbench_worker" / "__main__.py"
    program.write_text(program.read_text().replace('"ok": True', '"ok": False'))
    rows = [row for row in doctor_vbench.rows() if row[0] == "vbench compat"]
    assert rows == [("vbench compat", "measure: applied", False)]


def test_the_doctor_fails_where_the_environment_is_broken(tmp_path):
    python = write_environment(tmp_path / "scoring")
    environment.register(str(python))
    python.unlink()
    [(name, state, fine)] = doctor_vbench.rows()
    assert (name, fine) == ("vbench", False)
    assert state.endswith("there is no such file: harness fetch vbench --force")


def test_the_doctor_says_when_the_lock_is_newer_than_the_environment(tmp_path):
    write_environment(environment.folder())
    (environment.folder() / environment.MARKER).write_text('{"lock": "another"}')
    states = [state for name, state, _ in doctor_vbench.rows() if name == "vbench"]
    assert states[1] == "built with other versions than locked: harness fetch vbench"


def test_the_options_of_the_self_check_stand_with_it_only(capsys):
    assert call("doctor", "--clips", "2") == 2
    assert "go with --vbench" in capsys.readouterr().err
