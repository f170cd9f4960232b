"""One line of a source is edited: what it decides is made again, and nothing else."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.generate.generate import LATENTS_FILE, LOSSLESS_FILE, MP4_FILE
from harness.plan.experiment import Flags, resolve
from harness.plan.experiment_file import ExperimentFile
from harness.plan.plan import make_plan
from harness.plan.why import made_again
from harness.score.registry import load_scorer
from harness.spec import Prompt
from harness.store import sources
from harness.store.keys import digest
from harness.store.store import Entry, Store
from tests.doubles import write_model_folder

if TYPE_CHECKING:
    from harness.plan.plan import Plan

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("rtn", "gptq", "s2q", "sources_plugin:Mine")
ROWS = ("fp", *METHODS)
SCORERS = ("clip", "fidelity", "oracle", "sources_plugin:Brightness")
QUANTIZED = frozenset(METHODS)
EVERY = frozenset(ROWS)
PLUGIN = """
from harness.api import Metric, Scorer
from tests.doubles import Toy

FACTOR = 1


class Mine(Toy):
    name = "mine"


class Brightness(Scorer):
    name = "brightness"
    metrics = (Metric(name="brightness", unit="levels"),)
"""


@dataclass(frozen=True, kw_only=True)
class Made:
    """Keys of an experiment: artifacts and clips by row, scores by scorer."""

    artifacts: dict[str, str]
    clips: dict[str, str]
    scores: dict[str, str]

    def differs(self, other: Made) -> tuple[set[str], set[str], set[str]]:
        """Rows whose artifacts, rows whose clips, and scorers whose scores are made again."""
        pairs = (
            (self.artifacts, other.artifacts),
            (self.clips, other.clips),
            (self.scores, other.scores),
        )
        artifacts, clips, scores = ({k for k in a if a[k] != b[k]} for a, b in pairs)
        return artifacts, clips, scores


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "home"))
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "sources_plugin.py").write_text(PLUGIN)
    write_model_folder(tmp_path / "model")
    (tmp_path / "p.txt").write_text("one\n")
    (tmp_path / "c.txt").write_text("two\n")
    return tmp_path


def plan_of(place: Path) -> Plan:
    given = {
        "models": (str(place / "model"),),
        "methods": METHODS,
        "suite": str(place / "p.txt"),
        "baselines": False,
        "bits": ("w4a4",),
    }
    content = {"calibration": {"suite": str(place / "c.txt")}}
    experiment = resolve(ExperimentFile.model_validate(content), Flags(**given))  # type: ignore[arg-type]
    return make_plan(experiment, Store())


def made(place: Path) -> Made:
    cells = {c.cell.method.name: c for c in plan_of(place).cells}
    files = {name: {"sha256": name, "bytes": 1} for name in (MP4_FILE, LOSSLESS_FILE, LATENTS_FILE)}
    clip = Entry(kind="clip", key="k", folder=place, manifest={"files": files})
    return Made(
        artifacts={n: c.task.artifact.key for n, c in cells.items() if c.task.artifact},
        clips={name: cell.task.clips[0].clip.key for name, cell in cells.items()},
        scores={
            name: load_scorer(name).key(Prompt(id="a", text="x"), clip, clip).key
            for name in SCORERS
        },
    )


def edit(monkeypatch: pytest.MonkeyPatch, place: Path, module: str, old: str, new: str) -> None:
    """Have a module read as if one line of it were another."""
    find = sources.source_of
    path = find(module)
    assert path is not None
    text = path.read_text(encoding="utf-8")
    assert old in text, f"{module} has no {old!r}"
    copied = place / "edited" / path.name
    copied.parent.mkdir()
    copied.write_text(text.replace(old, new), encoding="utf-8")
    monkeypatch.setattr(sources, "source_of", lambda name: copied if name == module else find(name))


NONE: frozenset[str] = frozenset()
EVERY_SCORE = frozenset(SCORERS)


@pytest.mark.parametrize(
    ("module", "old", "new", "artifacts", "clips", "scores"),
    [
        pytest.param(
            "harness.quant.layers.grid", "round_", "floor_", QUANTIZED, QUANTIZED, NONE,
            id="rounding in the toolkit",
        ),
        pytest.param(
            "harness.quant.learning.learned", "import torch\n", "import torch\n\nX = 1\n",
            {"s2q"}, {"s2q"}, NONE, id="what one method uses of the toolkit",
        ),
        pytest.param(
            "methods.s2q.method", "version = 2", "version = 2\n    EXTRA = 1", {"s2q"}, {"s2q"},
            NONE, id="a method",
        ),
        pytest.param(
            "methods.s2q.method", "class S2Q(", "# a comment\nclass S2Q(", NONE, NONE, NONE,
            id="a comment in a method",
        ),
        pytest.param(
            "methods.s2q.method", "N = 40 samples;", "N = 41 samples;", NONE, NONE, NONE,
            id="the text of a deviation",
        ),
        pytest.param(
            "sources_plugin", "FACTOR = 1", "FACTOR = 2", {METHODS[-1]}, {METHODS[-1]},
            {SCORERS[-1]}, id="a plug-in",
        ),
        pytest.param(
            "harness.models.sample", "from __future__", "X = 1\nfrom __future__", QUANTIZED, EVERY,
            NONE, id="the sampler",
        ),
        pytest.param(
            "harness.models.trajectories", "1_000_000", "2_000_000", {"gptq", "s2q"},
            {"gptq", "s2q"}, NONE, id="the recorder of calibration trajectories",
        ),
        pytest.param(
            "harness.models.families.cogvideox", "from __future__", "X = 1\nfrom __future__",
            QUANTIZED, EVERY, NONE, id="the family of the model",
        ),
        pytest.param(
            "harness.models.families.wan", "from __future__", "X = 1\nfrom __future__", NONE, NONE,
            NONE, id="another family",
        ),
        pytest.param(
            "harness.artifact.quantize", "from __future__", "X = 1\nfrom __future__", QUANTIZED,
            QUANTIZED, NONE, id="the work of quantizing",
        ),
        pytest.param(
            "harness.generate.video", '"crf": "12"', '"crf": "20"', NONE, EVERY, EVERY_SCORE,
            id="the coder of clips",
        ),
        pytest.param(
            "harness.score.clip", "_BATCH = 16", "_BATCH = 8", NONE, NONE, {"clip"}, id="a scorer"
        ),
        pytest.param(
            "harness.models.shapes.oracle", "MIN_CHROMA = 50.0", "MIN_CHROMA = 40.0", NONE, NONE,
            {"oracle"}, id="what a scorer computes with",
        ),
        pytest.param(
            "harness.report.columns", "from __future__", "X = 1\nfrom __future__", NONE, NONE,
            NONE, id="a report",
        ),
    ],
)  # fmt: skip
def test_an_edited_line_makes_again_what_it_decides(
    place: Path, monkeypatch: pytest.MonkeyPatch, module, old, new, artifacts, clips, scores
) -> None:
    before = made(place)
    edit(monkeypatch, place, module, old, new)
    assert made(place).differs(before) == (set(artifacts), set(clips), set(scores))


def test_an_option_that_is_off_changes_no_key(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = made(place)
    edit(
        monkeypatch, place, "baselines.rtn",
        "    group: Whole = 0", "    group: Whole = 0\n    novelty: bool = False",
    )  # fmt: skip
    assert made(place).differs(before) == (set(), set(), set())


def test_a_dry_run_says_what_changed_since_when(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, store = plan_of(place), Store()
    assert made_again(plan, store) == {}, "what was never made is not made again"
    for cell in plan.cells:
        wanted = cell.task.artifact
        if wanted is not None:
            with store.build("artifact", wanted.key, wanted.inputs) as folder:
                (folder / "report.json").write_text("{}")
        clip = cell.task.clips[0].clip
        with store.build("clip", clip.key, clip.inputs) as folder:
            for name in (MP4_FILE, LOSSLESS_FILE, LATENTS_FILE):
                (folder / name).write_text(cell.cell.id)
    edit(monkeypatch, place, "harness.quant.layers.grid", "round_", "floor_")
    found = made_again(plan_of(place), Store())
    day = str(store.journal()[0]["at"])[:10]
    assert found["model--rtn--w4a4"] == f"toolkit changed since {day}"
    assert "model--fp--fp" not in found
    for path in list((store.root / "artifact").glob("??/*/manifest.json")):
        manifest = json.loads(path.read_text())
        manifest["inputs"] |= {"schema": 1, "options": {"group": 0, "modulation": "w"}}
        manifest["key"] = digest(manifest["inputs"])
        path.write_text(json.dumps(manifest))
        earlier = store.folder("artifact", manifest["key"])
        earlier.parent.mkdir(parents=True, exist_ok=True)
        path.parent.rename(earlier)
    found = made_again(plan_of(place), Store())
    assert found["model--rtn--w4a4"] == f"keys changed (schema 1 to 2) since {day}"
