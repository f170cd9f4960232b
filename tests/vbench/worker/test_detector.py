"""Dimensions that detect objects, on detections made by hand (see ``tests/vbench/detect.py``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.vbench.environment import find
from tests.vbench.driving import clip_job, run_script, score
from tests.vbench.made_clips import moving, write

SCRIPT = Path(__file__).parents[1] / "detect.py"
FRAMES = 16
LEFT, RIGHT, BELOW = [0, 10, 20, 30], [40, 10, 60, 30], [0, 50, 20, 70]
TOUCHING = [10, 10, 30, 30]  # a third of the union with LEFT
RELATION = {
    "spatial_relationship": {
        "object_a": "kettle",
        "object_b": "spoon",
        "relationship": "on the left of",
    }
}
DRAWN = 40

Answers = dict[str, dict[str, Any]]


def named(*names: str) -> list[Any]:
    """A frame with objects of these classes."""
    return [[name, LEFT, list(names)] for name in names]


def painted(*captions: str, first: str = "kettle") -> list[Any]:
    """A frame with these captions, whose first detection is of a class."""
    return [[caption, LEFT, [first]] for caption in captions]


def placed(*boxes: tuple[str, list[int]]) -> list[Any]:
    """A frame with objects at places."""
    return [[name, box, [name for name, _ in boxes]] for name, box in boxes]


def drawn(rng: np.random.Generator) -> list[Any]:
    """Frames with any boxes of two classes and of a third that is not asked for."""
    frames = []
    for _ in range(FRAMES):
        boxes = []
        for name in rng.choice(["kettle", "spoon", "lamp"], size=rng.integers(0, 5)):
            x, y = rng.integers(0, 80, 2)
            width, height = rng.integers(1, 40, 2)
            boxes.append((str(name), [int(v) for v in (x, y, x + width, y + height)]))
        frames.append(placed(*boxes))
    return frames


def cases() -> list[dict[str, Any]]:
    """All detections that are judged, in one process."""
    teal, plain = painted("a teal kettle"), painted("a kettle")
    made: dict[str, tuple[str, str, Any, list[Any]]] = {}

    def add(name: str, dimension: str, auxiliary: Any, frames: list[Any]) -> None:
        prompt = "a red kettle" if dimension == "color" else name
        made[name] = (dimension, prompt, auxiliary, frames)

    red, black = painted("a red kettle"), painted("a black kettle")
    add("always red", "color", {"color": "red"}, [red] * 16)
    add("red in four", "color", {"color": "red"}, [red] * 4 + [black] * 12)
    add("seen once", "color", {"color": "red"}, [red] + [[]] * 15)
    add("never seen", "color", {"color": "red"}, [[]] * 16)
    add("never painted", "color", {"color": "red"}, [plain] * 16)
    add("no such colour word", "color", {"color": "red"}, [teal] * 16)
    add("colour not said", "color", None, [red] * 16)
    add("half", "object_class", {"object": "kettle"}, [named("kettle")] * 8 + [[]] * 8)
    add("nothing", "object_class", {"object": "kettle"}, [[]] * 16)
    add("broken", "object_class", {"object": "kettle"}, [None] * 16)
    add("broken once", "object_class", {"object": "kettle"}, [named("kettle")] * 15 + [None])
    both = {"object": "kettle and spoon"}
    add("both", "multiple_objects", both, [named("kettle", "spoon")] * 4 + [named("spoon")] * 12)
    add("one asked", "multiple_objects", {"object": "kettle"}, [named("kettle")] * 16)
    add("broken pair", "multiple_objects", both, [None] * 16)
    kettle, spoon = ("kettle", LEFT), ("spoon", RIGHT)
    space = "spatial_relationship"
    add("as asked", space, RELATION, [placed(kettle, spoon)] * 16)
    add("other order", space, RELATION, [placed(spoon, kettle)] * 16)
    add("wrong side", space, RELATION, [placed(("kettle", RIGHT), ("spoon", LEFT))] * 16)
    add("two of one", space, RELATION, [placed(kettle, ("kettle", RIGHT))] * 16)
    add("alone", space, RELATION, [placed(kettle)] * 16)
    add("wrong axis", space, RELATION, [placed(kettle, ("spoon", BELOW))] * 16)
    add("overlapping", space, RELATION, [placed(kettle, ("spoon", TOUCHING))] * 16)
    add("relation not said", space, {"spatial_relationship": {}}, [placed(kettle, spoon)] * 16)
    for name, side in (("above", "on the top of"), ("under", "on the bottom of")):
        wanted = {space: {**RELATION[space], "relationship": side}}
        add(name, space, wanted, [placed(kettle, ("spoon", BELOW))] * 16)
    rng = np.random.default_rng(0)
    for i in range(DRAWN):
        add(f"drawn {i}", space, RELATION, drawn(rng))
    fields = ("dimension", "prompt", "auxiliary", "frames")
    return [{"name": n, **dict(zip(fields, v, strict=True))} for n, v in made.items()]


@pytest.fixture(scope="module")
def answers(scoring_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """Our judge's and the official function's answer to every case."""
    folder = tmp_path_factory.mktemp("detections")
    clip = write(folder / "clip-0.mp4", moving(FRAMES, 64, 64))
    path = folder / "cases.json"
    path.write_text(json.dumps([{**c, "clip": str(clip)} for c in cases()]), encoding="utf-8")
    found: Answers = json.loads(run_script(scoring_python, SCRIPT, path))
    return found


def test_a_value_is_the_official_one_wherever_there_is_one(answers: Answers) -> None:
    both = [a for a in answers.values() if "value" in a["official"] and "value" in a["ours"]]
    assert len(both) > DRAWN
    for answer in both:
        assert answer["ours"]["value"] == answer["official"]["value"]
        assert answer["ours"]["facts"]["official"] == answer["official"]["value"]
        assert answer["ours"]["valid"] is True


@pytest.mark.parametrize(
    ("case", "official", "strict"),
    [
        ("always red", 1.0, 1.0),
        ("red in four", 0.25, 0.25),
        ("seen once", 1.0, 1 / 16),
        ("half", 0.5, 0.5),
        ("nothing", 0.0, 0.0),
        ("both", 0.25, 0.25),
        ("as asked", 1.0, 1.0),
        ("other order", 1.0, 1.0),
        ("wrong side", 1.0, 0.0),
        ("two of one", 1.0, 0.0),
        ("alone", 0.0, 0.0),
        ("wrong axis", 0.0, 0.0),
        ("above", 1.0, 1.0),
        ("under", 1.0, 0.0),
        ("overlapping", 0.3, 0.3),
    ],
)
def test_the_strict_value_counts_only_what_is_there(
    answers: Answers, case: str, official: float, strict: float
) -> None:
    facts = answers[case]["ours"]["facts"]
    assert facts["official"] == pytest.approx(official, abs=1e-12)
    assert facts["strict"] == pytest.approx(strict, abs=1e-12)
    assert facts["frames"] == FRAMES


@pytest.mark.parametrize("case", ["never seen", "never painted", "no such colour word"])
def test_a_clip_that_color_leaves_out_is_not_valid_and_strictly_zero(
    answers: Answers, case: str
) -> None:
    ours = answers[case]["ours"]
    assert "ZeroDivisionError" in answers[case]["official"]["error"]
    assert (ours["valid"], ours["value"]) == (False, 0.0)
    assert ours["facts"] == {"official": None, "strict": 0.0, "frames": FRAMES, "seen": 0}


def test_no_detections_are_worth_more_strictly_than_officially(answers: Answers) -> None:
    facts = [a["ours"]["facts"] for a in answers.values() if "facts" in a["ours"]]
    known = [f for f in facts if f["official"] is not None]
    assert all(f["strict"] <= f["official"] + 1e-12 for f in known)
    assert sum(f["strict"] < f["official"] for f in known) > DRAWN / 2


@pytest.mark.parametrize("case", ["broken", "broken once"])
def test_a_detector_that_fails_is_an_error_where_the_official_code_sees_no_object(
    answers: Answers, case: str
) -> None:
    assert answers[case]["official"]["value"] < 1
    assert answers[case]["ours"] == {"error": "ValueError: the detector is broken"}


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("colour not said", "color needs the auxiliary entry"),
        ("one asked", "cannot look for 'kettle'"),
        ("relation not said", "lacks object_a, object_b, relationship"),
        ("broken pair", "the detector is broken"),
    ],
)
def test_what_cannot_be_judged_is_an_error_that_says_why(
    answers: Answers, case: str, says: str
) -> None:
    assert says in answers[case]["ours"]["error"]


def test_a_clip_weighs_as_many_frames_as_the_official_mean_counts(answers: Answers) -> None:
    assert answers["half"]["ours"]["weight"] == FRAMES
    assert answers["both"]["ours"]["weight"] == FRAMES
    assert answers["as asked"]["ours"]["weight"] == FRAMES
    assert answers["always red"]["ours"]["weight"] == 1  # color averages over clips


@pytest.mark.parametrize("scorer", ["shared", "official"])
def test_without_detectron2_only_the_detector_dimensions_are_unsupported(
    scoring_python: Path, tmp_path: Path, scorer: str
) -> None:
    environment = find(str(scoring_python))
    assert environment is not None
    if environment.detector:
        pytest.skip("detectron2 is installed")
    clip = write(tmp_path / "clip.mp4", moving(3, 64, 64))
    wanted = ["object_class", "multiple_objects", "color", "spatial_relationship"]
    auxiliary = {
        "object_class": {"object": "kettle"},
        "multiple_objects": {"object": "kettle and spoon"},
        "color": {"color": "red"},
        "spatial_relationship": RELATION,
    }
    job = clip_job("kettle", clip, [*wanted, "temporal_flickering"], auxiliary=auxiliary)

    answer = score(scoring_python, tmp_path / "run", tmp_path / "w", [job], scorer=scorer)

    assert list(answer.scores) == ["kettle/temporal_flickering"]
    troubles = {t["dimension"]: t for t in answer.of("trouble")}
    assert sorted(troubles) == sorted(wanted)
    for dimension, trouble in troubles.items():
        assert trouble["status"] == "unsupported"
        assert "detectron2, which is not installed" in trouble["detail"]
        assert trouble["keys"] == [f"kettle/{dimension}"]
