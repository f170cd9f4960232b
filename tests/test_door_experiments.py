"""Experiments from Python: the records, the forms of a file, wrong arguments, workers' imports."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import harness
from harness.errors import UsageError
from harness.spec import Status
from tests.doubles import write_model_folder
from tests.test_door import QUICK, same_files, two_lines

FAST = {"gen": QUICK, "execution": {"measure": False}}
RUN = {"models": "shapes", "bits": "w4a6", "limit": 1, "metrics": "none", "baselines": False}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A store of its own, for the environment of this process and of its workers."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARNESS_HOME", str(folder / "store"))
        yield folder


@pytest.fixture(scope="module")
def run(home):
    return harness.run_experiment(FAST, methods=("rtn",), out=home / "run", progress=False, **RUN)


@pytest.mark.slow
def test_an_experiment_gives_its_records_and_writes_the_run_folder(run, home):
    assert {cell.label: cell.status for cell in run.cells} == dict.fromkeys(
        ("fp", "rtn"), Status.OK
    )
    frame = run.frame()
    psnr = frame[(frame.metric == "psnr_db") & (frame.method == "rtn")]
    assert len(psnr) == 1
    assert psnr.value.iloc[0] > 5
    assert run.folder == home / "run"
    assert {"run.json", "records.jsonl", "table.md"} <= {p.name for p in run.folder.iterdir()}
    assert run.provenance["command"][0] == "harness.run_experiment"
    again = harness.load_run(str(run.folder))
    assert again.frame().equals(frame)


@pytest.mark.slow
def test_the_door_makes_the_codes_that_a_run_makes(run, tmp_path):
    made = next(Path(cell.artifact) for cell in run.cells if cell.label == "rtn")
    shapes = harness.load_pipeline("shapes", device="cpu")
    harness.quantize(shapes, "rtn", bits="w4a6", out=tmp_path / "own", gen=QUICK)
    assert same_files(made, tmp_path / "own")


@pytest.mark.slow
def test_a_file_and_its_content_are_the_same_experiment(run, home, capfd):
    table = {**FAST, "run": {"models": ["shapes"], "methods": ["rtn"], "limit": 1}}
    path = home / "mine.toml"
    path.write_text(
        '[run]\nmodels = ["shapes"]\nmethods = ["rtn"]\nlimit = 1\n'
        "[gen]\nsteps = 2\n[execution]\nmeasure = false\n"
    )
    flags = {"bits": ["w4a6"], "metrics": ["none"], "baselines": False}
    forms = (path, str(path), table)
    found = [harness.run_experiment(f, out=home / "b", progress=False, **flags) for f in forms]
    assert {other.id for other in found} == {run.id}
    assert all(other.records == run.records for other in found)
    assert capfd.readouterr() == ("", "")


WRONG_EXPERIMENTS = {
    "unknown flag": ({"method": "rtn"}, "argument 'method' is unknown"),
    "a flag of the command line": ({"no_baselines": True}, "did you mean baselines"),
    "a number for names": ({"methods": 3}, "run.methods = 3"),
    "no names": ({"methods": []}, "run.methods = []"),
    "a text for a number": ({"limit": "1"}, "run.limit = '1'"),
    "a number out of bounds": ({"jobs": 0}, "execution.jobs = 0"),
    "a text for a bool": ({"baselines": "no"}, "run.baselines = 'no'"),
    "unknown method": ({"methods": "rtm"}, "did you mean rtn"),
    "bad bits": ({"bits": "4"}, "bits '4' cannot be read"),
    "unknown section": ({"file": {"rum": {}}}, "did you mean run"),
    "a key of another type": ({"file": {"run": {"limit": "1"}}}, "run.limit = '1'"),
    "no file": ({"file": "nowhere.toml"}, "cannot be read"),
    "no experiment": ({"file": 3}, "3 is no experiment"),
}


@pytest.mark.parametrize("name", WRONG_EXPERIMENTS)
def test_an_experiment_that_cannot_be_meant_is_two_lines(name, home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given, words = WRONG_EXPERIMENTS[name]
    with pytest.raises(UsageError) as caught:
        harness.run_experiment(**given)
    assert words in str(caught.value)
    assert two_lines(caught)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("before", [None, "/elsewhere"])
def test_workers_find_a_method_that_this_process_finds(tmp_path, monkeypatch, home, before):
    if before is None:
        monkeypatch.delenv("PYTHONPATH", raising=False)
    else:
        monkeypatch.setenv("PYTHONPATH", before)
    (tmp_path / "own").mkdir()
    name = f"lonely_{before is None}".lower()
    (tmp_path / "own" / f"{name}.py").write_text("from baselines.rtn import RTN as Mine\n")
    monkeypatch.syspath_prepend(tmp_path / "own")
    model = str(write_model_folder(tmp_path / "model"))
    seen = []
    monkeypatch.setattr(
        "harness.run.run.execute", lambda *given: seen.append(os.environ["PYTHONPATH"])
    )
    monkeypatch.setattr("harness.report.render_run", lambda *given: None)
    harness.run_experiment(
        methods=f"{name}:Mine", models=model, out=tmp_path / "out", progress=False
    )
    assert seen == [os.pathsep.join([str(tmp_path / "own"), *([before] if before else [])])]
    assert os.environ.get("PYTHONPATH") == before
