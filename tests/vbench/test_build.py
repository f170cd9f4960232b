from __future__ import annotations

import fcntl
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.errors import HarnessError, InfraError, UsageError
from harness.vbench import build, environment, pip
from harness.vbench.dimensions import VBENCH_VERSION
from tests.vbench.fake_environment import (
    VBENCH_FILES,
    Index,
    asked,
    site_of,
    use_index,
    use_worker,
    write_environment,
    write_wheel,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

WAIT_S = 60


@pytest.fixture(autouse=True)
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return use_worker(tmp_path, monkeypatch)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """An index with what a lock of three packages needs; this interpreter is the right version."""
    (tmp_path / "wheels").mkdir()
    for name, version, files in (
        ("vbench", "0.1.5", VBENCH_FILES),
        ("torch", "2.13.0+cpu", {"torch/__init__.py": "one\n"}),
        ("open_clip", "1.0.1", {"open_clip.py": ""}),
    ):
        write_wheel(tmp_path / "wheels", name, version, files)
    lock = "# a comment\nopen-clip==1.0.1\ntorch==2.13.0\nvbench==0.1.5\n"
    wheels, cache = tmp_path / "wheels", tmp_path / "cache"
    with use_index(wheels, lock, monkeypatch, cache=cache) as served:
        yield served


@pytest.fixture(scope="module")
def with_pip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with pip, which takes seconds to make and a moment to copy."""
    folder = tmp_path_factory.mktemp("environment") / "vbench"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    return folder


@pytest.fixture
def begun(index: Index, with_pip: Path) -> Path:
    """A build that got as far as pip; returns the folder of packages."""
    del index
    shutil.copytree(with_pip, environment.folder(), symlinks=True)
    return site_of(environment.folder())


def built(**options: object) -> environment.Environment:
    return build.build(**{"python": None, "force": False, "progress": lambda *_: None} | options)


def start(tmp_path: Path) -> subprocess.Popen[str]:
    """A build in a process of its own, as the command line does it."""
    code = (
        "import sys; from pathlib import Path; from harness.vbench import build, interpreter\n"
        f"interpreter.FOREIGN = Path({str(tmp_path / 'foreign')!r})\n"
        f"build.LOCK, build.PYTHON = Path({str(build.LOCK)!r}), tuple(sys.version_info[:2])\n"
        "build.build(python=None, force=False, progress=lambda *_: None)\n"
    )
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)


def test_the_lock_pins_every_package_to_one_version():
    lines = [line for line in build.LOCK.read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    assert lines == sorted(lines, key=str.lower)
    found = pip.pins(build.LOCK)
    assert len(found) == len(lines)
    assert found["vbench"] == VBENCH_VERSION
    # What vbench itself pins, by its metadata.
    assert found["transformers"] == "4.33.2"
    assert int(found["numpy"].partition(".")[0]) < 2


def test_a_build_ends_with_its_marker_and_is_then_found(index, worker):
    del index
    reached = []
    found = built(progress=lambda share, text: reached.append((share, text)))
    assert found.versions["vbench"] == "0.1.5"
    assert found.versions["torch"] == "2.13.0+cpu"
    assert environment.find() == found
    assert found.python == environment.folder() / "bin" / "python"
    shares = [share for share, _ in reached]
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert shares == sorted(shares)
    assert any(re.match(r"collecting, \d of 3 packages", text) for _, text in reached)
    assert not environment.folder().with_suffix(".tmp").exists()

    marker = (environment.folder() / environment.MARKER).read_text()
    assert built() == found
    assert (environment.folder() / environment.MARKER).read_text() == marker
    assert asked(worker) == ["--facts", "--facts"]  # it was asked again whether it works


def test_ctrl_c_leaves_nothing_that_is_used_and_the_same_command_goes_on(index, tmp_path):
    index.stalled = "vbench"
    process = start(tmp_path)
    assert index.waiting.wait(WAIT_S)
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=WAIT_S)[1]
    assert environment.find() is None
    assert not build.is_built()
    assert not environment.folder().with_suffix(".tmp").exists()
    made = (environment.folder() / "pyvenv.cfg").stat().st_mtime_ns

    index.go.set()  # pip was ended with us: the lock on the build is free
    assert built().versions["vbench"] == "0.1.5"
    assert (environment.folder() / "pyvenv.cfg").stat().st_mtime_ns == made


@pytest.mark.usefixtures("begun")
def test_after_a_kill_pip_holds_the_build_until_it_has_ended(index, tmp_path):
    index.stalled = "vbench"
    process = start(tmp_path)
    assert index.waiting.wait(WAIT_S)
    process.kill()
    process.communicate(timeout=WAIT_S)
    with pytest.raises(InfraError, match="another process is building"):
        built()
    index.go.set()
    # Taking the lock waits for pip, which has it from the process that is gone.
    with environment.folder().with_suffix(".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
    assert environment.find() is None
    assert built().versions["vbench"] == "0.1.5"


def test_two_builds_at_once_are_refused(index):
    del index
    environment.folder().parent.mkdir(parents=True)
    with environment.folder().with_suffix(".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InfraError) as caught:
            built()
    assert len(str(caught.value).splitlines()) == 2
    assert not environment.folder().exists()


def test_a_package_that_was_written_by_half_is_installed_again(begun):
    site = begun
    built()
    (environment.folder() / environment.MARKER).unlink()
    (site / "torch" / "__init__.py").write_text("on")
    (site / "torch-2.13.0+cpu.dist-info" / "RECORD").unlink()  # pip writes it last
    built()
    assert (site / "torch" / "__init__.py").read_text() == "one\n"


def test_a_virtual_environment_without_pip_is_made_anew(index):
    del index
    write_environment(environment.folder(), vbench=None)
    assert built().versions["vbench"] == "0.1.5"


def test_a_new_lock_is_installed_over_the_old_one_and_force_removes_what_was_there(begun, tmp_path):
    built()
    mine = begun / "mine.txt"
    mine.write_text("")
    write_wheel(tmp_path / "wheels", "open_clip", "1.0.2", {"open_clip.py": ""})
    build.LOCK.write_text(build.LOCK.read_text().replace("1.0.1", "1.0.2"))
    assert not build.is_built()
    built()
    assert [path.name for path in begun.glob("open_clip-*")] == ["open_clip-1.0.2.dist-info"]
    assert mine.is_file()
    built(force=True)
    assert not mine.exists()


@pytest.mark.usefixtures("begun")
def test_a_build_takes_the_place_of_a_registered_interpreter(tmp_path):
    registered = write_environment(tmp_path / "registered")
    environment.register(str(registered))
    assert environment.find().python == registered
    assert built() == environment.find()


@pytest.mark.usefixtures("begun")
def test_the_users_pip_settings_lead_no_package_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_TARGET", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("PIP_USER", "1")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert built().versions["vbench"] == "0.1.5"
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.usefixtures("begun")
def test_what_pip_cannot_find_is_two_lines_that_name_the_log(tmp_path):
    (tmp_path / "wheels" / "open_clip-1.0.1-py3-none-any.whl").unlink()
    with pytest.raises(HarnessError) as caught:
        built()
    message, hint = str(caught.value).splitlines()
    assert "Could not find a version that satisfies the requirement open-clip==1.0.1" in message
    log = Path(re.search(r"see (\S+);", hint)[1])
    assert "open-clip" in log.read_text()
    assert environment.find() is None
    write_wheel(tmp_path / "wheels", "open_clip", "1.0.1", {"open_clip.py": ""})
    assert built().versions["vbench"] == "0.1.5"


@pytest.mark.usefixtures("begun")
def test_an_environment_that_is_not_what_was_locked_is_never_used(monkeypatch):
    monkeypatch.setattr(pip, "install", lambda *_: None)  # as if pip had said that all is there
    with pytest.raises(HarnessError, match=r"open-clip missing instead of 1\.0\.1"):
        built()
    assert environment.find() is None


@pytest.mark.usefixtures("begun")
def test_a_worker_that_cannot_start_leaves_no_marker(worker):
    (worker / "vbench_worker" / "__main__.py").write_text("raise SystemExit('no torchvision')\n")
    with pytest.raises(HarnessError, match="no torchvision"):
        built()
    assert not build.is_built()


def test_a_damaged_marker_does_not_count():
    environment.folder().mkdir(parents=True)
    (environment.folder() / environment.MARKER).write_text("{")
    assert not build.is_built()


def program(path: Path, version: str) -> str:
    answer = json.dumps({"version": [int(part) for part in version.split(".")], "path": []})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{answer}'\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("version", ["3.10.13", "3.12.1"])
def test_an_interpreter_without_builds_of_the_lock_is_refused(tmp_path, version):
    given = program(tmp_path / "python", version)
    with pytest.raises(UsageError) as caught:
        build.base_interpreter(given)
    message, hint = str(caught.value).splitlines()
    assert f"'{given}' is Python {version}" in message
    assert hint == "hint: name a Python 3.11"


def test_an_interpreter_that_is_none_is_refused():
    with pytest.raises(UsageError, match="'/no/python' cannot be used: there is no such program"):
        build.base_interpreter("/no/python")


def test_the_first_interpreter_of_the_right_version_is_taken(tmp_path, monkeypatch):
    wanted = program(tmp_path / "bin" / "python3.11", "3.11.9")
    newer = program(tmp_path / "python3.13", "3.13.0")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(sys, "executable", newer)
    assert str(build.base_interpreter(None)) == wanted
    right = program(tmp_path / "running", "3.11.2")
    monkeypatch.setattr(sys, "executable", right)
    assert str(build.base_interpreter(None)) == right


def test_without_an_interpreter_of_the_right_version_there_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", program(tmp_path / "python3.13", "3.13.0"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutil.which("python3.11") is None
    with pytest.raises(HarnessError, match=r"needs Python 3\.11") as caught:
        build.base_interpreter(None)
    assert "--python" in caught.value.hint
