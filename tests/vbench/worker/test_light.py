from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.vbench import made_clips
from tests.vbench.driving import Answer, clip_job, run_script, score

LIGHT = [
    "temporal_flickering",
    "motion_smoothness",
    "dynamic_degree",
    "imaging_quality",
    "subject_consistency",
    "background_consistency",
]
STATIC = "static_filter"
EVALUATE = Path(__file__).parents[1] / "evaluate.py"
MODELS = ["amt-s", "clip-vit-b-32", "dino-vitb16", "musiq-spaq", "raft-things"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    python: Path
    weights: Path
    clips: dict[str, Path]

    def score(
        self, folder: Path, names: list[str], dimensions: list[str], **changes: Any
    ) -> Answer:
        jobs = [clip_job(n, self.clips[n], dimensions) for n in names]
        return score(self.python, folder, self.weights, jobs, **changes)


@pytest.fixture(scope="module")
def case(scoring_python, random_weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("light")
    frames = {
        # 160 is a multiple of 32, the widths of which decord can hand out.
        "moving": made_clips.moving(6, 128, 160),
        "noise": made_clips.noise(3),
        "still": made_clips.still(4),
    }
    clips = {n: made_clips.write(folder / f"{n}-0.mp4", f) for n, f in frames.items()}
    return Case(python=scoring_python, weights=random_weights, clips=clips)


@pytest.fixture(scope="module")
def shared(case, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared") / "job"
    return case.score(folder, list(case.clips), [*LIGHT, STATIC])


@pytest.fixture(scope="module")
def again(case, tmp_path_factory):
    """The same once more, of one clip and without what is not a dimension."""
    return case.score(tmp_path_factory.mktemp("again") / "job", ["moving"], LIGHT)


@pytest.fixture(scope="module")
def official(case, tmp_path_factory):
    """What ``VBench(...).evaluate(...)`` says of the same folder."""
    folder = tmp_path_factory.mktemp("official")
    spec = {
        "weights": str(case.weights),
        "videos": str(case.clips["moving"].parent),
        "out": str(folder / "out"),
        "dimensions": LIGHT,
    }
    path = folder / "spec.json"
    path.write_text(json.dumps(spec), encoding="utf-8")
    return json.loads(run_script(case.python, EVALUATE, path))


@pytest.mark.parametrize("dimension", LIGHT)
def test_each_clip_has_exactly_the_value_of_the_official_call(shared, official, dimension):
    _, theirs = official[dimension]
    ours = {f"{name}-0.mp4": shared.scores[f"{name}/{dimension}"] for name in _names(shared)}
    assert {file: event["facts"]["official"] for file, event in ours.items()} == theirs
    scale = 100 if dimension == "imaging_quality" else 1
    assert all(event["value"] == theirs[file] / scale for file, event in ours.items())
    # Equality says nothing where all clips have one value: the weights are random, not idle.
    assert len(set(theirs.values())) > 1 or dimension == "dynamic_degree"


@pytest.mark.parametrize("dimension", LIGHT)
def test_the_weighted_mean_is_the_official_aggregate(shared, official, dimension):
    aggregate, _ = official[dimension]
    events = [e for e in shared.of("score") if e["dimension"] == dimension]
    total = sum(e["weight"] * e["value"] for e in events)
    # The official sums run over the frames, in the order of the folder: another rounding.
    assert math.isclose(total / sum(e["weight"] for e in events), aggregate, rel_tol=1e-12)


def test_consistency_weighs_a_clip_by_its_frames_less_one(shared):
    for dimension in ("subject_consistency", "background_consistency"):
        weights = {n: shared.scores[f"{n}/{dimension}"]["weight"] for n in _names(shared)}
        assert weights == {"moving": 5, "noise": 2, "still": 3}
    assert shared.scores["moving/imaging_quality"]["weight"] == 1


def test_each_file_is_decoded_once_and_each_model_loaded_once(shared, case):
    counts = shared.counts
    assert counts["decodes"] == len(case.clips)
    assert counts["models"] == dict.fromkeys(MODELS, 1)
    assert counts["readers_agree"]
    assert counts["scaled_decodes"] == 0


def test_only_the_pairs_that_decide_are_computed(again):
    assert again.value("moving/dynamic_degree") == 1
    # round(6 / 4) moving pairs decide.
    assert again.counts["pairs"] == {"run": 2, "of": 5}


def test_two_runs_give_the_same_events(shared, again):
    assert again.scores == {f"moving/{d}": shared.scores[f"moving/{d}"] for d in LIGHT}


def test_batches_change_no_verdict_and_values_by_rounding_only(case, shared, tmp_path):
    batched = case.score(tmp_path / "job", ["moving"], LIGHT, batch=4)
    assert batched.scores.keys() == {f"moving/{dimension}" for dimension in LIGHT}
    for key, event in batched.scores.items():
        difference = abs(event["value"] - shared.scores[key]["value"])
        assert difference <= TOLERANCES.get(event["dimension"], 0.0), key


TOLERANCES = {
    # Another batch is another order of summation in the convolutions of AMT. Its frames are cut to
    # whole levels, so that a difference in the last place of a float can move a value by one level:
    # one of the 128 * 128 * 3 values of one frame moves the score by 8e-8.
    "motion_smoothness": 1e-6,
    # The same in MUSIQ, whose score is a float32 on a scale of 100.
    "imaging_quality": 1e-7,
    # And in DINO, on processors whose matrix products take another order for another batch: 5e-8
    # was seen on one of two, exact equality on the other.
    "subject_consistency": 1e-6,
}


def test_the_official_functions_themselves_give_the_same_events(case, shared, tmp_path):
    names = ["noise", "still"]
    theirs = case.score(tmp_path / "job", names, [*LIGHT, STATIC], scorer="official")
    assert theirs.scores == {k: e for k, e in shared.scores.items() if k.split("/")[0] in names}
    said = {e["dimension"]: e["aggregate"] for e in theirs.of("official")}
    assert said.keys() == set(LIGHT)
    for dimension, aggregate in said.items():
        events = [theirs.scores[f"{name}/{dimension}"] for name in names]
        mean = sum(e["weight"] * e["value"] for e in events) / sum(e["weight"] for e in events)
        assert math.isclose(aggregate, mean, rel_tol=1e-12)


def _names(answer: Answer) -> list[str]:
    return sorted({key.split("/")[0] for key in answer.scores})
