"""The world of the bundled model: rendering, captions and the held-out split."""

from __future__ import annotations

import numpy as np
import pytest

from harness.errors import HarnessError
from harness.models.shapes import FRAMES, HEIGHT, WIDTH
from harness.models.shapes.world import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    SHAPES,
    Attributes,
    Scene,
    background_levels,
    caption,
    combinations,
    held_out_combinations,
    is_held_out,
    object_masks,
    parse_caption,
    render,
    sample_scene,
    training_combinations,
)


def scene(shape: str = "square", motion: str = "standing still", **nuisance: float) -> Scene:
    attributes = Attributes(shape=shape, colour="red", background="white", motion=motion)
    return Scene(attributes=attributes, **nuisance)


def test_the_world_is_as_large_as_promised() -> None:
    assert len(SHAPES) >= 4
    assert len(COLOURS) >= 8
    assert len(BACKGROUNDS) >= 4
    assert len(MOTIONS) >= 8
    assert len(combinations()) == len(set(combinations())) == 4 * 8 * 4 * 8 - 1 * 8 * 4 * 1


def test_every_caption_reads_back_as_its_attributes() -> None:
    captions = [caption(a) for a in combinations()]
    assert len(set(captions)) == len(captions)
    assert [parse_caption(text) for text in captions] == list(combinations())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red square",
        "a red square moving left on a striped background ",
        "A red square moving left on a striped background",
        "a mauve square moving left on a striped background",
        "a red square moving left on a striped background\n",
    ],
)
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(HarnessError, match="is not a caption"):
        parse_caption(text)


def test_a_rotating_circle_is_not_in_the_world() -> None:
    with pytest.raises(HarnessError, match="rotating circle"):
        parse_caption("a red circle rotating on a white background")


def test_an_unknown_value_is_refused_by_name() -> None:
    with pytest.raises(HarnessError, match="'mauve'"):
        Attributes(shape="square", colour="mauve", background="white", motion="growing")


def test_training_never_holds_a_held_out_combination() -> None:
    held_out, training = set(held_out_combinations()), set(training_combinations())
    assert held_out.isdisjoint(training)
    assert held_out | training == set(combinations())
    assert 128 <= len(held_out) <= len(combinations()) // 4


def test_the_split_is_the_one_the_weights_were_trained_with() -> None:
    assert len(held_out_combinations()) == 206
    assert is_held_out(parse_caption(caption(held_out_combinations()[0])))


def test_each_value_occurs_on_both_sides_of_the_split() -> None:
    for part in (held_out_combinations(), training_combinations()):
        assert {a.shape for a in part} == set(SHAPES)
        assert {a.colour for a in part} == set(COLOURS)
        assert {a.background for a in part} == set(BACKGROUNDS)
        assert {a.motion for a in part} == set(MOTIONS)


def test_a_clip_has_the_promised_form_and_is_repeatable() -> None:
    drawn = sample_scene(combinations()[100], np.random.default_rng(3))
    frames = render(drawn)
    assert frames.shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert frames.dtype == np.uint8
    assert np.array_equal(frames, render(drawn))


def test_nuisance_differs_between_draws_and_not_between_equal_seeds() -> None:
    one = sample_scene(combinations()[0], np.random.default_rng(1))
    assert one == sample_scene(combinations()[0], np.random.default_rng(1))
    assert one != sample_scene(combinations()[0], np.random.default_rng(2))


def test_backgrounds_are_grey_and_differ() -> None:
    levels = [background_levels(name) for name in BACKGROUNDS]
    for i, one in enumerate(levels):
        for other in levels[:i]:
            assert np.abs(one - other).mean() > 25


@pytest.mark.parametrize(
    ("motion", "axis", "sign"),
    [("moving left", 1, -1), ("moving right", 1, 1), ("moving up", 0, -1), ("moving down", 0, 1)],
)
def test_the_object_moves_the_way_the_caption_says(motion: str, axis: int, sign: int) -> None:
    masks = object_masks(scene(motion=motion, travel=20.0))
    weights = np.arange(HEIGHT) + 0.5
    profile = masks.sum(axis=2 if axis == 0 else 1)
    centre = (profile * weights).sum(1) / profile.sum(1)
    assert centre[-1] - centre[0] == pytest.approx(20.0 * sign, abs=0.3)
    assert np.all(np.diff(centre) * sign > 0)


@pytest.mark.parametrize(("motion", "ratio"), [("growing", 4.0), ("shrinking", 0.25)])
def test_growth_is_the_ratio_of_the_sizes(motion: str, ratio: float) -> None:
    areas = object_masks(scene(motion=motion, growth=2.0)).sum((1, 2))
    assert areas[-1] / areas[0] == pytest.approx(ratio, rel=0.05)


def test_standing_still_means_that_no_pixel_changes() -> None:
    frames = render(scene())
    assert np.array_equal(frames, np.broadcast_to(frames[0], frames.shape))


def test_the_shapes_have_nearly_the_same_area() -> None:
    areas = [object_masks(scene(shape=name))[0].sum() for name in SHAPES]
    assert max(areas) / min(areas) < 1.25


def test_a_quarter_turn_brings_a_square_back() -> None:
    masks = object_masks(scene(motion="rotating"))
    assert np.abs(masks[-1] - masks[0]).max() < 0.02
    assert np.abs(masks[8] - masks[0]).max() > 0.5
