from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from harness.errors import HarnessError, UsageError
from harness.store.keys import file_digest
from harness.vbench import environment
from tests.vbench.fake_environment import (
    asked,
    install,
    site_of,
    use_worker,
    write_environment,
    write_worker,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return use_worker(tmp_path, monkeypatch)


@pytest.fixture
def scoring(tmp_path: Path) -> Path:
    return write_environment(tmp_path / "scoring")


def write_program(path: Path, *lines: str) -> str:
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return str(path)


def test_there_is_none_before_one_is_built_registered_or_given():
    assert environment.find() is None
    assert environment.missing_line() == "vbench is not installed: harness fetch vbench"


def test_a_given_interpreter_is_asked_what_it_holds(scoring):
    found = environment.find(str(scoring))
    info = site_of(scoring.parent.parent) / "vbench" / "VBench_full_info.json"
    assert found.python == scoring
    assert found.versions == {"vbench": "0.1.5", "torch": "", "detectron2": ""}
    assert (found.full_info, found.full_info_sha256) == (info, file_digest(info))
    assert (found.detector, found.cuda, found.problems) == (False, False, ())


def test_a_link_into_a_virtual_environment_is_not_followed(scoring):
    assert scoring.is_symlink()
    assert environment.find(str(scoring)).python == scoring


def test_a_relative_path_means_the_same_from_everywhere(scoring, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert environment.find("scoring/bin/python").python == scoring


def test_detectron2_makes_a_detector(scoring):
    install(scoring.parent.parent, "detectron2", "0.6", {})
    assert environment.find(str(scoring)).detector


def test_a_version_that_was_never_tested_is_a_problem(tmp_path):
    found = environment.find(str(write_environment(tmp_path / "old", vbench="0.1.4")))
    assert found.problems == ("vbench is 0.1.4; only 0.1.5 was tested",)


def test_the_second_question_starts_no_process(scoring, worker, monkeypatch):
    first = environment.find(str(scoring))
    assert asked(worker) == ["--facts"]

    def refuse(*arguments, **options):
        raise AssertionError(f"a process was started: {arguments}")

    monkeypatch.setattr(subprocess, "run", refuse)
    assert environment.find(str(scoring)) == first


def new_package(scoring: Path, worker: Path) -> None:
    del worker
    install(scoring.parent.parent, "detectron2", "0.6", {})


def new_worker(scoring: Path, worker: Path) -> None:
    del scoring
    (worker / "vbench_worker" / "light.py").write_text("# another measure\n")


def new_list(scoring: Path, worker: Path) -> None:
    del worker
    info = site_of(scoring.parent.parent) / "vbench" / "VBench_full_info.json"
    info.write_text('[{"prompt_en": "a clip"}]\n')


@pytest.mark.parametrize("change", [new_package, new_worker, new_list])
def test_what_was_remembered_is_asked_again_after_a_change(scoring, worker, change):
    environment.find(str(scoring))
    change(scoring, worker)
    found = environment.find(str(scoring))
    assert asked(worker) == ["--facts", "--facts"]
    assert found.detector == (change is new_package)
    assert found.full_info_sha256 == file_digest(found.full_info)


def test_an_interpreter_that_was_just_built_is_asked_anew(scoring, worker):
    environment.find(str(scoring))
    environment.ask(scoring)
    assert asked(worker) == ["--facts", "--facts"]


def test_a_given_interpreter_goes_before_the_registered_and_that_before_the_built(tmp_path):
    paths = [write_environment(tmp_path / name) for name in ("given", "registered")]
    built = write_environment(environment.folder())
    (environment.folder() / environment.MARKER).write_text("{}")
    assert environment.find().python == built
    environment.register(str(paths[1]))
    assert environment.find().python == paths[1]
    assert environment.find(str(paths[0])).python == paths[0]


def test_an_environment_without_its_marker_is_half_built_and_not_found():
    write_environment(environment.folder())
    assert environment.find() is None


def test_nothing_of_ours_reaches_the_other_interpreter(scoring, tmp_path, monkeypatch):
    write_worker(tmp_path / "other")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "other"))
    monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path / "absent.py"))
    monkeypatch.setenv("PYTHONHOME", str(tmp_path / "nowhere"))
    environment.find(str(scoring))
    assert asked(tmp_path / "other") == []


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (
            ['echo \'{"version": [3, 10, 13], "path": []}\''],
            "it is Python 3.10.13, the worker needs 3.11 or newer",
        ),
        (["echo 'cannot open libpython' >&2", "exit 127"], "cannot open libpython"),
        (["exit 3"], "exit code 3"),
        (["exit 0"], "it printed nothing"),
        (["echo hello"], "unexpected answer: hello"),
        (["echo 3"], "unexpected answer: 3"),
    ],
)
def test_an_interpreter_that_does_not_answer_is_refused_with_what_it_said(tmp_path, lines, reason):
    with pytest.raises(UsageError) as caught:
        environment.find(write_program(tmp_path / "python", *lines))
    assert reason in caught.value.message
    assert len(str(caught.value).splitlines()) == 2


def test_an_interpreter_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match=r"'/no/python' cannot score: there is no such program"):
        environment.find("/no/python")


def test_an_interpreter_without_vbench_is_refused_and_not_registered(tmp_path):
    python = write_environment(tmp_path / "empty", vbench=None)
    with pytest.raises(UsageError) as caught:
        environment.register(str(python))
    message, hint = str(caught.value).splitlines()
    assert message == f"error: interpreter '{python}' cannot score: it has no package 'vbench'"
    assert hint == "hint: name one that has vbench 0.1.5, or build it: harness fetch vbench"
    assert environment.find() is None


def test_a_vbench_without_its_list_of_prompts_is_refused(scoring):
    (site_of(scoring.parent.parent) / "vbench" / "VBench_full_info.json").unlink()
    with pytest.raises(UsageError, match=r"has no VBench_full_info\.json"):
        environment.find(str(scoring))


def test_a_registered_interpreter_that_went_away_is_an_error_with_a_remedy(scoring):
    environment.register(str(scoring))
    scoring.unlink()
    with pytest.raises(HarnessError) as caught:
        environment.find()
    assert "no longer works: there is no such file" in caught.value.message
    assert caught.value.hint == "harness fetch vbench --force"


def test_a_damaged_registration_is_an_error():
    environment.registration().parent.mkdir(parents=True)
    environment.registration().write_text("{")
    with pytest.raises(HarnessError, match="cannot be read"):
        environment.find()


def test_a_home_that_cannot_be_written_only_costs_the_memory(scoring, tmp_path):
    (tmp_path / "home").write_text("a file where the folder should be")
    assert environment.find(str(scoring)).versions["vbench"] == "0.1.5"


def test_the_check_gives_a_line_for_each_measure_and_dimension(scoring):
    found = environment.check(scoring, timeout_s=60)
    assert [(row["kind"], row["name"], row["ok"]) for row in found] == [
        ("compat", "measure", True),
        ("dimension", "scene", True),
        ("dimension", "human_action", False),
    ]


def test_finding_imports_nothing_heavy(scoring):
    environment.register(str(scoring))
    code = (
        "import json, sys; from harness.vbench.environment import find; find();"
        "heavy = {'torch', 'numpy', 'pydantic', 'pandas', 'rich'};"
        "print(json.dumps(sorted(heavy & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
