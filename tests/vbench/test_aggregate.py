from __future__ import annotations

import random
from dataclasses import replace

import pytest

from harness.errors import HarnessError
from harness.vbench.aggregate import FORMULA, UNFILTERED, ClipScore, aggregate, flickering
from harness.vbench.dimensions import DIMENSIONS


def _scores(*values: float, prompt: str = "p", first: int = 0) -> list[ClipScore]:
    return [
        ClipScore(clip=f"{prompt}-{i}", prompt=prompt, sample=i, value=value)
        for i, value in enumerate(values, first)
    ]


def _many(count: int, seed: int) -> list[ClipScore]:
    draw = random.Random(seed)
    return [
        ClipScore(
            clip=f"c{i}",
            prompt=f"p{i // 3}",
            sample=i % 3,
            value=draw.random() ** draw.randint(1, 40),
            weight=float(draw.randint(1, 48)),
            valid=draw.random() > 0.2,
            strict=draw.random() if i % 2 else None,
        )
        for i in range(count)
    ]


def test_ours_counts_each_prompt_once_and_the_official_one_each_clip() -> None:
    scores = _scores(0.5, 0.5, 0.5, prompt="p") + _scores(0.9, prompt="q")
    found = aggregate(scores)
    assert found.ours == pytest.approx((0.5 + 0.9) / 2)
    assert found.official == pytest.approx((3 * 0.5 + 0.9) / 4)
    assert (found.n_valid, found.n, found.prompts, found.strict) == (4, 4, 2, None)


def test_the_official_one_weighs_longer_clips_more() -> None:
    # similarity to first and former frame: two pairs of one clip, eight of the other
    pairs = [[0.9, 0.7], [0.5] * 8]
    scores = [
        ClipScore(
            clip=f"c{i}", prompt=f"p{i}", sample=0, value=sum(p) / len(p), weight=float(len(p))
        )
        for i, p in enumerate(pairs)
    ]
    found = aggregate(scores)
    assert found.official == pytest.approx(sum(sum(p) for p in pairs) / 10)
    assert found.ours == pytest.approx((0.8 + 0.5) / 2)


def test_a_clip_that_the_official_code_leaves_out_counts_in_neither_but_in_the_strict_one() -> None:
    seen = ClipScore(clip="a", prompt="p", sample=0, value=1.0, strict=0.25)
    unseen = ClipScore(clip="b", prompt="q", sample=0, value=0.0, valid=False, strict=0.0)
    found = aggregate([seen, unseen])
    assert (found.ours, found.official, found.strict) == (1.0, 1.0, 0.125)
    assert (found.n_valid, found.n, found.prompts) == (1, 2, 1)


def test_seeing_less_never_raises_the_strict_value() -> None:
    scores = [
        ClipScore(clip=f"c{i}", prompt=f"p{i}", sample=0, value=value, strict=value * 0.5)
        for i, value in enumerate([0.2, 0.4, 1.0])
    ]
    lost = [replace(scores[0], value=0.0, valid=False, strict=0.0), *scores[1:]]
    before, after = aggregate(scores), aggregate(lost)
    assert before.official is not None
    assert after.official is not None
    assert before.strict is not None
    assert after.strict is not None
    assert after.official > before.official
    assert after.strict < before.strict


def test_nothing_valid_is_no_number() -> None:
    unseen = ClipScore(clip="b", prompt="q", sample=0, value=0.0, valid=False)
    found = aggregate([unseen])
    assert (found.ours, found.official, found.strict, found.n_valid) == (None, None, 0.0, 0)
    empty = aggregate([])
    assert (empty.ours, empty.official, empty.strict, empty.n) == (None, None, None, 0)


@pytest.mark.parametrize("shards", [1, 2, 5])
@pytest.mark.parametrize("seed", range(10))
def test_shards_and_order_change_no_bit(shards: int, seed: int) -> None:
    scores = _many(61, seed)
    expected = aggregate(scores)
    draw = random.Random(seed)
    parts = [scores[i::shards] for i in range(shards)]
    draw.shuffle(parts)
    for part in parts:
        draw.shuffle(part)
    assert aggregate(score for part in parts for score in part) == expected
    assert expected.ours != expected.official


def test_a_clip_that_two_shards_judged_alike_counts_once() -> None:
    scores = _scores(0.25, 0.5)
    assert aggregate([*scores, *scores]) == aggregate(scores)


def test_a_clip_that_two_shards_judged_differently_is_refused() -> None:
    scores = _scores(0.25, 0.5)
    with pytest.raises(HarnessError, match="clip 'p-0' was judged twice"):
        aggregate([*scores, replace(scores[0], value=0.26)])


def test_flickering_is_averaged_over_the_first_five_static_clips_by_file_name() -> None:
    scores = _scores(*(i / 25 for i in range(25)))
    static = {score.clip: score.sample != 1 for score in scores}
    found = flickering(reversed(scores), static)
    # names in order: -0 -1 -10 -11 -12 -13 ...
    assert [score.sample for score in found.scores] == [0, 10, 11, 12, 13]
    assert (found.metric, found.short, found.reason) == ("temporal_flickering", {}, "")


def test_the_order_of_clips_is_the_one_in_which_their_files_are_listed() -> None:
    scores = _scores(*[0.5] * 25)
    listed = sorted(scores, key=lambda s: f"/v/p-{s.sample}.mp4")
    found = flickering(scores, {score.clip: True for score in scores})
    assert list(found.scores) == listed[:5]


def test_prompts_with_few_static_clips_are_named_and_those_with_none_drop_out() -> None:
    scores = _scores(*[0.5] * 6, prompt="p") + _scores(*[0.75] * 6, prompt="q")
    scores += _scores(*[1.0] * 6, prompt="r")
    static = {s.clip: s.prompt == "p" or (s.prompt == "q" and s.sample < 2) for s in scores}
    found = flickering(scores, static)
    assert found.short == {"q": 2, "r": 0}
    assert aggregate(found.scores).official == pytest.approx((5 * 0.5 + 2 * 0.75) / 7)


def test_without_the_filter_the_metric_has_another_name_and_all_clips_count() -> None:
    scores = _scores(*[0.5] * 6)
    for static in (None, {scores[0].clip: True}):
        found = flickering(scores, static)
        assert found.metric == UNFILTERED == "temporal_flickering_unfiltered"
        assert len(found.scores) == 6
        assert found.reason
    assert "judged 1 of 6 clips" in flickering(scores, {scores[0].clip: True}).reason


def test_every_dimension_says_what_its_official_number_averages_over() -> None:
    assert set(FORMULA) == set(DIMENSIONS)
