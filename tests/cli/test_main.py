from __future__ import annotations

import os
import resource
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from harness.cli.main import COMMANDS, main
from tests.doubles import write_model_folder

if TYPE_CHECKING:
    from pathlib import Path

HEAVY = ("torch", "diffusers", "transformers", "pandas", "numpy", "scipy", "pydantic", "rich", "av")


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return int(caught.value.code or 0)


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["run", "--methods", "s2qq"], "method 's2qq' is unknown", "did you mean s2q?"),
        (["run", "--model", "shaps"], "model 'shaps' is unknown", "did you mean shapes?"),
        (["run", "--suite", "shapes-evl"], "suite 'shapes-evl' is unknown", "shapes-eval"),
        (["run", "--bits", "w4"], "bits 'w4' cannot be read", "w4a6"),
        (["run", "--bits", "a6w4"], "bits 'a6w4' cannot be read", "w4a6"),
        (["run", "--bits", "w0a4"], "weight width of 0", "2 to 8"),
        (["run", "--bits", "w4a99"], "activation width of 99", "2 to 8"),
        (["run", "--bist", "w4a6"], "option '--bist' is unknown", "did you mean --bits?"),
        (["run", "--limit", "none"], "invalid value for '--limit'", "harness run --help"),
        (["run", "--limit", "0"], "invalid value for '--limit'", "harness run --help"),
        (["run", "--seeds", "a"], "invalid value for '--seeds'", "harness run --help"),
        (["run", "--device", "tpu"], "device 'tpu' is unknown", "cpu"),
        (["run", "--device", "cuda:99"], "device 'cuda:99' is not there", "--device cpu"),
        (["run", "--config", "absent.toml"], "'absent.toml' cannot be read", "path"),
        (["rnu"], "command 'rnu' is unknown", "did you mean run?"),
        (["list", "metods"], "invalid value for", "harness list --help"),
        (["verify", "nowhere"], "'nowhere' is not a run folder", "run.json"),
    ],
)
def test_a_mistake_is_two_lines_and_exit_2(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    message: str,
    hint: str,
) -> None:
    if "--model" not in arguments and arguments[0] == "run":
        arguments = [*arguments, "--model", str(write_model_folder(tmp_path / "model"))]
    code = call(*arguments)
    error = capsys.readouterr().err
    lines = error.strip().splitlines()
    assert len(lines) == 2, error
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("hint: ")
    assert message in lines[0]
    assert hint in lines[1]
    assert code == (1 if arguments[0] == "verify" else 2)


def test_a_mistake_is_found_before_torch_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: print('torch' in sys.modules))\n"
        "from harness.cli.main import main; main(sys.argv[1:])"
    )
    write_model_folder(tmp_path / "model")
    for wrong in (["--methods", "s2qq"], ["--bits", "w4"], ["--suite", "x"], ["--model", "x"]):
        done = subprocess.run(
            [sys.executable, "-c", code, "run", "--model", str(tmp_path / "model"), *wrong],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2, done.stderr
        assert done.stdout.strip() == "False"


@pytest.mark.parametrize("arguments", [["--help"], ["list", "methods"], ["list", "models"]])
def test_help_and_lists_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys, atexit\n"
        f"atexit.register(lambda: print('HEAVY', [m for m in {HEAVY} if m in sys.modules]))\n"
        "from harness.cli.main import main; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, *arguments]
    if "methods" in arguments:  # every method is asked once; the answers are remembered
        subprocess.run(command, capture_output=True, check=True)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("HEAVY []")


def cpu_seconds(*command: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_takes_less_than_a_third_of_a_second_beyond_the_interpreter() -> None:
    bare = min(cpu_seconds("-c", "pass") for _ in range(3))
    told = min(cpu_seconds("-m", "harness.cli.main", "--help") for _ in range(3))
    assert told - bare < 0.3


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name in COMMANDS:
        assert call(name, "--help") == 0
        assert f"Usage: harness {name}" in capsys.readouterr().out


def test_debug_shows_where_an_error_came_from(capsys: pytest.CaptureFixture[str]) -> None:
    from harness.errors import UsageError

    with pytest.raises(UsageError, match="shapes-nowhere"):
        main(["run", "--model", "shapes-nowhere", "--debug"])
    del capsys


def test_an_environment_variable_stands_for_a_flag(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HARNESS_RUN_BITS", "w99a1")
    assert call("run", "--model", str(write_model_folder(tmp_path / "model"))) == 2
    assert "w99a1" in capsys.readouterr().err


def test_a_dry_run_prints_the_plan_and_makes_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "p.txt").write_text("one\ntwo\n")
    model = str(write_model_folder(tmp_path / "model"))
    arguments = ["run", "--model", model, "--suite", "p.txt", "--methods", "tests.doubles:Toy"]
    assert call(*arguments, "--no-baselines", "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("2 cells, 4 clips to make, 0 found, time unknown")
    assert any("model--tests.doubles.Toy--w4a6" in line and "yes" in line for line in lines)
    assert any(line.startswith("disk: at most") for line in lines)
    assert not (tmp_path / "runs").exists()


def test_a_calibration_suite_that_overlaps_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "p.txt").write_text("one\ntwo\n")
    (tmp_path / "c.txt").write_text("Two.\n")
    (tmp_path / "e.toml").write_text('[calibration]\nsuite = "c.txt"\n')
    arguments = ["run", "--model", str(write_model_folder(tmp_path / "model")), "--suite", "p.txt"]
    methods = ["--methods", "tests.doubles:Calibrated", "--no-baselines"]
    assert call(*arguments, *methods, "--config", "e.toml") == 2
    assert "shares 1 prompts" in capsys.readouterr().err


def test_gc_removes_leftovers_and_old_results_only(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from harness.store.keys import digest
    from harness.store.store import Store

    store = Store()
    for n in (1, 2):
        with store.build("clip", digest({"n": n}), {"n": n}) as folder:
            (folder / "f").write_text("x")
    old = store.folder("clip", digest({"n": 1}))
    os.utime(old, (1e9, 1e9))
    (store.root / "quarantine" / "bad").mkdir(parents=True)
    assert call("gc", "--older-than", "30", "--dry-run") == 0
    assert old.exists()
    assert call("gc") == 0
    assert old.exists()
    assert not (store.root / "quarantine" / "bad").exists()
    assert call("gc", "--older-than", "30") == 0
    assert not old.exists()
    assert store.find("clip", digest({"n": 2})) is not None
    capsys.readouterr()


def test_doctor_says_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    call("doctor")
    out = capsys.readouterr().out
    for word in ("torch", "store", "codecs", "methods", "shapes-eval", "cores"):
        assert word in out
