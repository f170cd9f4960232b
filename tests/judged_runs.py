"""Runs whose clips are judged by a faked judge, for the tests of planning and of records."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.plan.experiment import Flags
from harness.plan.experiment_file import ExperimentFile
from harness.vbench import weights
from tests.doubles import write_model_folder
from tests.fake_judge import write_judge
from tests.fake_run import fake_run
from tests.vbench import made_list

if TYPE_CHECKING:
    from harness.spec import Record
    from harness.store.records import Run


TOY = "tests.doubles:Toy"
ROOT = Path(__file__).resolve().parent.parent
FLICKER = "temporal_flickering_unfiltered"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, prompts, a store and a judge of its own."""
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    write_model_folder(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("\n".join(f"prompt number {i}" for i in range(3)))
    write_judge(tmp_path / "judge", made_list.write(tmp_path))
    return tmp_path


def flags(place: Path, *methods: str, **more: object) -> Flags:
    given: dict[str, object] = {
        "models": (str(place / "model"),),
        "methods": methods or (TOY,),
        "suite": str(place / "prompts.txt"),
        "out": place / "out",
        "baselines": False,
        **more,
    }
    return Flags(**given)  # type: ignore[arg-type]


def file(place: Path, **vbench: object) -> ExperimentFile:
    python = str(place / "judge" / "python")
    content = {
        "envs": {"vbench": {"python": python}},
        "vbench": {"shards": 1, **vbench},
        "execution": {"measure": False},
    }
    return ExperimentFile.model_validate(content)


def run(place: Path, *methods: str, vbench: dict[str, object] | None = None, **more: Any) -> Run:
    return fake_run(flags(place, *methods, **more), file(place, **(vbench or {})))[0]


def write_weights(*dimensions: str) -> None:
    """Empty files where the weights belong, said to be no official ones."""
    folder = weights.folder()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / weights.STAND_IN).write_text("empty files of a test\n")
    for name in weights.ids_of(dimensions):
        for one in weights.table()[name].files:
            path = folder / one.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)


def of(found: Run, metric: str) -> list[Record]:
    return [record for record in found.records if record.metric == metric]


def one(found: Run, metric: str, label: str) -> Record:
    named = [r for r in of(found, metric) if r.cell.split("--")[1] == label]
    assert len(named) == 1
    return named[0]
