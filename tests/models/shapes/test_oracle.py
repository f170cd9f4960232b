"""The oracle judges fresh clips right, damaged ones robustly, and garbage wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy import ndimage

from harness.models.shapes import oracle
from harness.models.shapes.world import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    SHAPES,
    Attributes,
    combinations,
    parse_caption,
    render,
    sample_scene,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

ASKED = parse_caption("a red square moving left on a striped background")


def clip(text: str, seed: int = 0) -> NDArray[np.uint8]:
    return render(sample_scene(parse_caption(text), np.random.default_rng(seed)))


def every_value_once() -> list[Attributes]:
    chosen, left = [], list(combinations())
    for number in range(8):
        chosen.append(
            next(
                a
                for a in left
                if a.colour == COLOURS[number]
                and a.motion == MOTIONS[number]
                and a.shape == SHAPES[(number + 1) % 4]
                and a.background == BACKGROUNDS[number // 2]
            )
        )
    return chosen


@pytest.mark.parametrize("asked", every_value_once(), ids=lambda a: f"{a.colour}-{a.motion}")
def test_a_fresh_clip_is_judged_right_with_a_clear_margin(asked: Attributes) -> None:
    frames = render(sample_scene(asked, np.random.default_rng(7)))
    assert min(oracle.judge(frames, asked).margins().values()) > 0.4


def test_fresh_clips_are_judged_right() -> None:
    rng = np.random.default_rng(11)
    drawn = [combinations()[i] for i in rng.integers(len(combinations()), size=40)]
    right = [oracle.judge(render(sample_scene(a, rng)), a).right()["conjunction"] for a in drawn]
    assert np.mean(right) >= 0.99


def test_blur_and_noise_do_not_change_the_verdict() -> None:
    rng = np.random.default_rng(5)
    for asked in every_value_once():
        frames = render(sample_scene(asked, rng)).astype(float)
        damaged = ndimage.gaussian_filter(frames, (0.3, 1.2, 1.2, 0)) + rng.normal(
            0, 12, frames.shape
        )
        verdict = oracle.judge(np.clip(damaged, 0, 255).astype(np.uint8), asked)
        assert all(verdict.right().values()), (asked, verdict)


@pytest.mark.parametrize(
    ("attribute", "text"),
    [
        ("shape", "a red triangle moving left on a striped background"),
        ("colour", "a pink square moving left on a striped background"),
        ("background", "a red square moving left on a checkered background"),
        ("motion", "a red square moving right on a striped background"),
    ],
)
def test_only_the_attribute_that_differs_is_wrong(attribute: str, text: str) -> None:
    verdict = oracle.judge(clip(text), ASKED)
    right = verdict.right()
    assert not right["conjunction"]
    assert [name for name in ("shape", "colour", "background", "motion") if not right[name]] == [
        attribute
    ]
    assert getattr(verdict, attribute).seen == getattr(parse_caption(text), attribute)


def test_the_conjunction_is_the_least_margin() -> None:
    margins = oracle.judge(
        clip("a red square moving left on a striped background"), ASKED
    ).margins()
    assert margins.pop("conjunction") == min(margins.values())


@pytest.mark.parametrize("motion", [m for m in MOTIONS if m != "standing still"])
def test_a_frozen_clip_is_judged_wrong(motion: str) -> None:
    asked = parse_caption(f"a red square {motion} on a striped background")
    frames = render(sample_scene(asked, np.random.default_rng(0)))
    for number in (0, 8, 16):
        frozen = np.repeat(frames[number : number + 1], len(frames), axis=0)
        verdict = oracle.judge(frozen, asked)
        assert not verdict.motion.right
        assert not verdict.right()["conjunction"]
        assert verdict.motion.seen == "standing still"


def test_a_clip_played_backwards_moves_the_other_way() -> None:
    frames = clip("a red square moving left on a striped background")[::-1]
    assert oracle.judge(frames, ASKED).motion.seen == "moving right"


def garbage() -> dict[str, NDArray[np.generic]]:
    rng = np.random.default_rng(0)
    full = (17, 64, 64, 3)
    return {
        "noise": rng.integers(0, 256, full, dtype=np.uint8),
        "grey noise": np.repeat(rng.integers(0, 256, (17, 64, 64, 1), dtype=np.uint8), 3, axis=3),
        "coarse noise": np.kron(
            rng.integers(0, 256, (17, 8, 8, 3), dtype=np.uint8), np.ones((1, 8, 8, 1), np.uint8)
        ),
        "black": np.zeros(full, np.uint8),
        "white": np.full(full, 255, np.uint8),
        "red": np.broadcast_to(np.array([225, 25, 25], np.uint8), full),
        "empty": np.zeros((0, 64, 64, 3), np.uint8),
        "nothing": np.zeros((0,), np.uint8),
        "one frame": clip("a red square standing still on a striped background")[:1],
        "other size": np.zeros((17, 32, 32, 3), np.uint8),
        "floats": np.full(full, np.nan),
    }


@pytest.mark.parametrize("name", list(garbage()))
@pytest.mark.parametrize("motion", ["moving left", "standing still"])
def test_garbage_is_wrong_in_every_attribute_and_never_raises(name: str, motion: str) -> None:
    asked = parse_caption(f"a red square {motion} on a striped background")
    verdict = oracle.judge(garbage()[name], asked)  # type: ignore[arg-type]
    assert not any(verdict.right().values()), (name, verdict)
    assert all(-1.0 <= m <= 0.0 for m in verdict.margins().values())


def test_margins_fall_as_the_clip_fades_into_noise() -> None:
    frames = clip("a red square moving left on a striped background").astype(float)
    noise = np.random.default_rng(0).uniform(0, 255, frames.shape)
    margins = []
    for share in (0.0, 0.35, 0.9):
        mixed = ((1 - share) * frames + share * noise).astype(np.uint8)
        margins.append(oracle.judge(mixed, ASKED).margins()["conjunction"])
    assert margins[0] > margins[1] > margins[2]
    assert margins[2] == -1.0


def test_the_digest_is_that_of_the_source() -> None:
    assert len(oracle.digest()) == 64
    assert oracle.digest() == oracle.digest()
