"""A metric in a package of its own, and from a file: found, scored, shown, and what goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from harness.errors import HarnessError, UsageError
from harness.report.build import build_table
from harness.report.compare import compare
from harness.report.csv import comma_separated
from harness.report.terminal import footer
from harness.score.registry import BrokenScorerError, load_scorer
from harness.spec import Prompt, Status
from harness.store.records import load_run
from harness.store.store import Store
from tests.judged_runs import of, place, run
from tests.score.test_scorers import frames, publish

if TYPE_CHECKING:
    from harness.store.records import Run

__all__ = ["place"]

FOLDER = Path(__file__).parent / "plugin" / "metric"
ROOT = Path(__file__).parent.parent
OWN = "colourfulness:Colourfulness"
BROKEN = """
from harness.api import HarnessError, Metric, Scorer

def one(name, **facts):
    return (Metric(name=name, unit="levels", **facts),)

class Defect(Scorer):
    name, metrics = "defect", one("defect")
    def score(self, clip, reference):
        return {"defect": 1 / 0}

class Other(Scorer):
    name, metrics = "other", one("declared")
    def score(self, clip, reference):
        return {"undeclared": 1.0}

class Endless(Scorer):
    name, metrics = "endless", one("endless")
    def score(self, clip, reference):
        return {"endless": float("inf")}

class Short(Scorer):
    name, metrics = "short", one("short")
    def score(self, clip, reference):
        raise HarnessError("the clip is too short", "make it longer")

class Lacking(Scorer):
    name, metrics = "lacking", one("lacking")
    def missing(self):
        return "its weights were not fetched"

class Double(Scorer):
    name, metrics = "double", one("psnr_db")

class Empty(Scorer):
    name = "empty"

class NoScorer:
    name = "none"
"""


@pytest.fixture
def files(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path with the documented metric and some that go wrong."""
    folder = tmp_path_factory.mktemp("metrics")
    shutil.copy(FOLDER / "colourfulness.py", folder)
    (folder / "broken_metrics.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(str(folder))
    return folder


def judged(place: Path, files: Path, monkeypatch: pytest.MonkeyPatch, *metrics: str) -> Run:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{files}")
    return run(place, metrics=metrics)


def test_a_metric_from_a_file_is_a_column_everywhere(
    place: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = judged(place, files, monkeypatch, OWN)
    records = of(found, "colourfulness")
    assert {r.status for r in records if r.cell != "model--fp--fp"} == {Status.OK}
    assert {(r.unit, r.better) for r in of(found, "colour_shift")} == {("levels", "lower")}
    assert {r.detail for r in records if r.cell == "model--fp--fp"} == {"reference"}
    again = load_run(place / "out")
    assert [fact for fact in again.metrics if fact.name.startswith("colour")] == [
        *load_scorer(OWN).metrics
    ]
    monkeypatch.setattr("harness.score.registry.load_scorer", None)  # the file is not needed again
    table = build_table(again)
    columns = {c.key: c for block in table.blocks for c in block.columns}
    assert columns["colourfulness"].block == "quality"
    assert columns["colour_shift"].block == "fidelity to fp"
    head = comma_separated(table).splitlines()[0].split(",")
    assert {"colourfulness", "colourfulness_n", "colour_shift_ci_low"} <= set(head)
    toy = compare(again, reference="tests.doubles.Toy", metrics=["colour_shift"], other=again)
    assert {difference.better for difference in toy} == {"lower"}


def test_a_scorer_of_its_own_scores_real_clips(tmp_path: Path, files: Path) -> None:
    store, scorer = Store(tmp_path), load_scorer(OWN)
    reference = publish(store, "reference", frames(), [1.0])
    grey = np.repeat(frames().mean(-1, keepdims=True), 3, axis=-1).astype(np.uint8)
    clip = publish(store, "grey", grey, [1.0])
    prompt = Prompt(id="p", text="x")
    scorer.make(store, prompt, clip, reference)
    found = scorer.find(store, prompt, clip, reference)
    assert found is not None
    assert found.values["colourfulness"] == pytest.approx(0.0)
    assert found.values["colour_shift"] > 5


@pytest.mark.parametrize(
    ("name", "failed"),
    [
        ("Endless", "endless of this clip is not a finite number"),
        ("Short", "the clip is too short"),
    ],
)
def test_what_is_a_property_of_the_clip_is_kept_with_its_reason(
    tmp_path: Path, files: Path, name: str, failed: str
) -> None:
    store, scorer = Store(tmp_path), load_scorer(f"broken_metrics:{name}")
    clip = publish(store, "clip", frames(), [1.0])
    scorer.make(store, Prompt(id="p", text="x"), clip, None)
    found = scorer.find(store, Prompt(id="p", text="x"), clip, None)
    assert found is not None
    assert (found.values, found.failed) == ({}, failed)


@pytest.mark.parametrize("name", ["Defect", "Other"])
def test_a_defect_of_the_scorer_is_no_property_of_the_clip(
    tmp_path: Path, files: Path, name: str
) -> None:
    store, scorer = Store(tmp_path), load_scorer(f"broken_metrics:{name}")
    clip = publish(store, "clip", frames(), [1.0])
    with pytest.raises((ZeroDivisionError, TypeError)):
        scorer.make(store, Prompt(id="p", text="x"), clip, None)
    assert scorer.find(store, Prompt(id="p", text="x"), clip, None) is None


def test_a_metric_that_lacks_something_says_so_in_the_table(
    place: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = judged(place, files, monkeypatch, "broken_metrics:Lacking")
    assert {r.status for r in of(found, "lacking")} == {Status.SKIPPED}
    assert "lacking skipped: its weights were not fetched" in footer(build_table(found))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent_module:X", "cannot be imported"),
        ("broken_metrics:Absent", "cannot be imported"),
        ("broken_metrics:NoScorer", "is no Scorer with a name"),
        ("broken_metrics:Empty", "declares no metrics"),
    ],
)
def test_what_is_no_metric_is_refused_in_two_lines(files: Path, name: str, message: str) -> None:
    with pytest.raises(BrokenScorerError, match=message) as caught:
        load_scorer(name)
    assert len(str(caught.value).splitlines()) == 2


def test_two_scorers_with_one_metric_are_refused(
    place: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="'psnr_db' is given by 'fidelity' and by 'double'"):
        judged(place, files, monkeypatch, "broken_metrics:Double")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package installed into a folder, from a copy so that the tree stays clean."""
    source = tmp_path_factory.mktemp("source") / "metric"
    shutil.copytree(FOLDER, source, ignore=shutil.ignore_patterns("__pycache__"))
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--target", str(target)]
    subprocess.run([*pip, *offline, str(source)], check=True, capture_output=True, text=True)
    return target


def test_an_installed_metric_is_listed_and_taken_by_name(installed: Path, tmp_path: Path) -> None:
    code = (
        "import json; from harness.score.registry import load_scorer; "
        "from harness.cli.main import main; "
        "print(json.dumps([m.name for m in load_scorer('colourfulness').metrics])); "
        "main(['list', 'metrics'])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed), "HARNESS_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=True,
    )
    first, *lines = done.stdout.splitlines()
    assert json.loads(first) == ["colourfulness", "colour_shift"]
    assert any(line.startswith("colourfulness ") and line.endswith("; ready") for line in lines)


def test_the_documented_metric_is_the_tested_one_and_short() -> None:
    page = (ROOT / "docs" / "adding-a-metric.md").read_text(encoding="utf-8")
    code = (FOLDER / "colourfulness.py").read_text(encoding="utf-8")
    assert f"```python\n{code}```" in page
    assert f"```toml\n{(FOLDER / 'pyproject.toml').read_text(encoding='utf-8')}```" in page
    assert len(code.splitlines()) < 40


def test_a_broken_error_is_one_of_ours() -> None:
    assert issubclass(BrokenScorerError, HarnessError)
