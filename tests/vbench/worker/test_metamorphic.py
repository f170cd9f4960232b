"""What must and must not change the values, with random weights or by definition."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.vbench import made_clips
from tests.vbench.driving import Answer, clip_job, score

if TYPE_CHECKING:
    from pathlib import Path

DIMENSIONS = [
    "temporal_flickering",
    "motion_smoothness",
    "dynamic_degree",
    "subject_consistency",
    "background_consistency",
]
QUALITY = "imaging_quality"
QUALITY_OF = ("moving", "reversed", "doubled", "frozen", "odd", "single", "fast")
"""MUSIQ is slow; only these are looked at."""


def _clips(folder: Path) -> dict[str, Path]:
    # Coded without loss: what is said of the frames must hold of what is read back.
    moving = made_clips.moving()
    frames = {
        "moving": moving,
        "reversed": moving[::-1],
        "doubled": np.repeat(moving, 2, axis=0),
        "frozen": made_clips.still(),
        "black": np.zeros_like(moving),
        "noise": made_clips.noise(),
        "odd": moving[:, :125, :127],
        "tiny": moving[:, :64, :64],
        "single": moving[:1],
        "pair": moving[:2],
    }
    written = {n: made_clips.write_exact(folder / f"{n}.mp4", f) for n, f in frames.items()}
    for name, fps in (("slow", 4), ("fast", 60)):
        written[name] = made_clips.write_exact(folder / f"{name}.mp4", moving, fps)
    return written


@pytest.fixture(scope="module")
def answer(scoring_python, random_weights, tmp_path_factory) -> Answer:
    folder = tmp_path_factory.mktemp("metamorphic")
    jobs = [
        clip_job(name, path, [*DIMENSIONS, *([QUALITY] if name in QUALITY_OF else [])])
        for name, path in _clips(folder).items()
    ]
    return score(scoring_python, folder / "job", random_weights, jobs)


def test_nothing_went_wrong(answer):
    assert answer.of("trouble") == []
    settled = len(answer.of("score")) + len(answer.of("unscorable"))
    assert settled == 12 * len(DIMENSIONS) + len(QUALITY_OF)
    assert answer.counts["decodes"] == 12


def test_a_frozen_clip_is_perfectly_consistent(answer):
    for name in ("frozen", "black"):
        assert answer.value(f"{name}/temporal_flickering") == 1
        for dimension in ("subject_consistency", "background_consistency"):
            # A cosine of a vector with itself, in float32.
            assert answer.value(f"{name}/{dimension}") == pytest.approx(1, abs=1e-6)


def test_moving_and_noisy_clips_are_less_consistent_than_a_frozen_one(answer):
    for name in ("moving", "noise"):
        for dimension in ("temporal_flickering", "subject_consistency", "background_consistency"):
            assert answer.value(f"{name}/{dimension}") < answer.value(f"frozen/{dimension}") - 1e-6


def test_a_reversed_clip_flickers_the_same_and_looks_the_same(answer):
    for dimension in ("temporal_flickering", "imaging_quality"):
        assert answer.value(f"reversed/{dimension}") == pytest.approx(
            answer.value(f"moving/{dimension}"), abs=1e-12
        )


def test_consistency_with_the_first_frame_depends_on_the_direction(answer):
    there, back = (answer.value(f"{name}/subject_consistency") for name in ("moving", "reversed"))
    assert there != back


def test_doubled_frames_look_the_same_and_flicker_less(answer):
    quality = answer.value("doubled/imaging_quality")
    assert quality == pytest.approx(answer.value("moving/imaging_quality"), abs=1e-12)
    # 4 of the 9 steps change the picture, and by as much as the 4 of 4 do.
    lost = (1 - answer.value("moving/temporal_flickering")) * 4 / 9
    assert answer.value("doubled/temporal_flickering") == pytest.approx(1 - lost, abs=1e-7)


def test_quality_does_not_depend_on_motion(answer):
    first = answer.value("single/imaging_quality")
    assert answer.value("frozen/imaging_quality") == pytest.approx(first, abs=1e-12)


def test_frames_a_second_change_only_the_dynamic_degree(answer):
    keys = {key for key in answer.scores if key.startswith(("slow/", "fast/"))}
    assert f"fast/{QUALITY}" in keys
    for key in keys - {"slow/dynamic_degree", "fast/dynamic_degree"}:
        assert answer.value(key) == answer.value(f"moving/{key.split('/')[1]}")


def test_at_60_frames_a_second_one_frame_in_eight_is_looked_at(answer):
    # Of 5 frames the first only, so that there is no pair: the official answer is no.
    assert answer.value("moving/dynamic_degree") == 1
    assert answer.value("slow/dynamic_degree") == 1
    assert answer.value("fast/dynamic_degree") == 0


def test_one_frame_has_no_change_of_which_to_speak(answer):
    assert _reasons(answer, "single") == {
        "temporal_flickering": "has 1 frame, needs 2",
        "motion_smoothness": "has 1 frame, needs 3",
        "subject_consistency": "has 1 frame, needs 2",
        "background_consistency": "has 1 frame, needs 2",
    }
    assert answer.value("single/dynamic_degree") == 0
    assert _reasons(answer, "pair") == {"motion_smoothness": "has 2 frames, needs 3"}


def test_two_frames_are_dynamic_whatever_they_show(answer):
    # round(2 / 4) = 0 pairs have to move, which the official code grants at the first pair.
    assert answer.value("pair/dynamic_degree") == 1


def test_an_odd_size_is_scored(answer):
    assert _reasons(answer, "odd") == {}


def test_a_clip_too_small_for_the_flow_networks_has_no_such_value(answer):
    assert _reasons(answer, "tiny") == {
        "motion_smoothness": "is 64x64 pixels, needs 113 on each side",
        "dynamic_degree": "is 64x64 pixels, needs 121 on each side",
    }


def _reasons(answer: Answer, clip: str) -> dict[str, str]:
    found = [e for e in answer.of("unscorable") if e["key"].startswith(f"{clip}/")]
    return {e["dimension"]: e["reason"] for e in found}
