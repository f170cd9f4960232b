"""``harness run`` as a user calls it, with real workers on the miniature pipeline."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from harness.spec import Status
from harness.store.records import load_run
from harness.store.store import Store
from tests.doubles import write_model_folder

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENT = """
[gen]
steps = 3
guidance = 4.0
[[method]]
name = "rtn"
[[method]]
name = "tests.doubles:Crash"
label = "crash"
[[method]]
name = "tests.doubles:Hungry"
label = "hungry"
[[method]]
name = "tests.doubles:Toy"
label = "toy"
bits = ["w3a4"]
"""
HARNESS = (
    "import sys, atexit\n"
    "atexit.register(lambda: print('TORCH', 'torch' in sys.modules, file=sys.stderr))\n"
    "from harness.cli.main import main; main(sys.argv[1:])"
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "e.toml").write_text(EXPERIMENT)
    (tmp_path / "p.txt").write_text("a red circle moving left\na blue cross standing still\n")
    return tmp_path


def harness(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", HARNESS, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_main_job_from_one_command_to_the_table(
    place: Path, tiny_pipeline_folder: Path
) -> None:
    command = ["run", "--config", "e.toml", "--model", str(tiny_pipeline_folder)]
    command += ["--suite", "p.txt", "--out", "out"]
    done = harness(*command)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("6 cells (1 unsupported), 10 clips to make, 0 found"), done.stderr
    assert lines[-1] == str(place / "out")
    assert done.returncode == 1, "two rows crash, so the exit code says so"
    run = load_run(place / "out")
    rows = {cell.label: cell for cell in run.cells}
    assert {label: row.status for label, row in rows.items()} == {
        "fp": Status.OK,
        "control": Status.OK,
        "rtn": Status.OK,
        "crash": Status.ERROR,
        "hungry": Status.OOM,
        "toy": Status.UNSUPPORTED,
    }
    assert "SIGSEGV" in rows["crash"].detail
    values = {(r.cell, r.metric, r.prompt): r.value for r in run.records}
    assert values["tiny--control--fp", "psnr_db", "p-000"] == 100.0
    assert values["tiny--control--fp", "latent_error", "p-001"] == 0.0
    psnr = values["tiny--rtn--w4a6", "psnr_db", "p-000"]
    assert psnr is not None
    assert 0 < psnr < 100
    assert values["tiny--rtn--w4a6", "layers_target", ""] == 16
    assert (values["tiny--fp--fp", "peak_bytes", ""] or 0) > 50e6
    assert (place / "out" / "table.csv").exists()
    checked = harness("verify", "out")
    assert checked.stdout == "ok    tiny--rtn--w4a6\n", checked.stderr
    _a_repeated_run_makes_nothing_and_needs_no_torch(place, command)
    _a_lost_clip_comes_back_bit_for_bit(command)


def _a_repeated_run_makes_nothing_and_needs_no_torch(place: Path, command: list[str]) -> None:
    before = len(Store().journal())
    quick = [*command, "--methods", "rtn"]
    harness(*quick)
    made = len(Store().journal()) - before
    done = harness(*quick)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3 cells, 6 clips found, nothing to make")
    assert "TORCH False" in done.stderr
    assert len(Store().journal()) == before + made
    # The set of measured rows is the same, so not even the timings are new.
    assert made == 0
    assert load_run(place / "out").cells[-1].status is Status.OK


def _a_lost_clip_comes_back_bit_for_bit(command: list[str]) -> None:
    store = Store()
    key = next(
        r["key"]
        for r in store.journal()
        if r["kind"] == "clip" and r["label"].startswith("tiny--rtn")
    )
    entry = store.find("clip", key)
    assert entry is not None
    files = {name: facts["sha256"] for name, facts in entry.manifest["files"].items()}
    shutil.rmtree(entry.folder)
    done = harness(*command, "--methods", "rtn")
    assert "1 clips to make, 5 found" in done.stdout
    again = Store().find("clip", key)
    assert again is not None
    for name in ("clip.mp4", "frames.mkv", "latents.safetensors"):
        assert again.file_sha256(name) == files[name], name


def test_ctrl_c_stops_the_workers_says_what_is_kept_and_exits_130(place: Path) -> None:
    model = str(write_model_folder(place / "model"))
    command = [sys.executable, "-c", HARNESS, "run", "--model", model, "--suite", "p.txt"]
    process = subprocess.Popen(
        [*command, "--methods", "control", "--no-baselines", "--out", "out"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not workers(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    started = workers(process.pid)
    os.kill(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert started
    assert process.returncode == 130, error
    assert re.search(r"interrupted; the workers are stopped, the \d+ results .* are kept", error)
    assert "the same command goes on from there" in error
    assert not any(worker.is_running() for worker in started)


def workers(pid: int) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.Error):  # a short-lived child (git) may be gone by now
            if "harness.run.worker" in child.cmdline():
                found.append(child)
    return found


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_fills_up_during_the_work_is_told_from_other_errors() -> None:
    from harness.run.worker import failure

    with (
        pytest.raises(OSError, match="No space") as caught,
        Path("/dev/full").open("wb", 0) as file,
    ):
        file.write(b"x")
    told = failure(caught.value)
    assert (told["status"], told["disk_full"]) == (Status.ERROR, True)
    assert "disk_full" not in failure(ValueError("x"))
    assert failure(MemoryError())["status"] is Status.OOM
