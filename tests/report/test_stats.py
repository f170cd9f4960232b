from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.report import stats
from harness.store.records import by_prompt

numbers = st.floats(-50, 50, allow_nan=False).map(lambda x: round(x, 3))
pvalues = st.lists(st.floats(0, 1), min_size=1, max_size=8)


def test_seeds_are_averaged_before_prompts():
    rows = [("a", 0, 1.0), ("a", 1, 3.0), ("b", 0, 10.0)]
    assert by_prompt(rows) == {"a": 2.0, "b": 10.0}


def test_only_prompts_that_both_have_are_paired():
    assert stats.paired({"a": 3.0, "b": 1.0, "c": 0.0}, {"b": 4.0, "a": 1.0}) == [2.0, -3.0]


def test_no_value_has_no_estimate():
    assert stats.estimate([]) is None
    assert stats.sign_flip_p([]) is None


def test_one_prompt_has_a_mean_and_no_interval():
    one = stats.estimate([2.5])
    assert one == stats.MeanInterval(n=1, mean=2.5)
    assert not one.excludes_zero
    assert stats.sign_flip_p([2.5]) == 1.0


def test_identical_rows_differ_by_exactly_zero():
    same = stats.estimate([0.0] * 8)
    assert (same.mean, same.low, same.high) == (0.0, 0.0, 0.0)
    assert not same.excludes_zero
    assert stats.sign_flip_p([0.0] * 8) == 1.0


def test_a_constant_gain_excludes_zero_and_has_the_smallest_exact_p():
    gain = [0.3] * 6
    assert stats.estimate(gain).excludes_zero
    assert stats.sign_flip_p(gain) == pytest.approx(2 / 2**6)


def test_the_same_numbers_give_the_same_interval_twice():
    values = list(np.random.default_rng(1).normal(size=16))
    assert stats.estimate(values) == stats.estimate(values)


def test_the_interval_is_close_to_the_textbook_one_for_normal_data():
    values = np.random.default_rng(3).normal(2.0, 1.0, size=400)
    found = stats.estimate(values)
    half = 1.96 * values.std(ddof=1) / 20
    assert found.low == pytest.approx(values.mean() - half, abs=0.02)
    assert found.high == pytest.approx(values.mean() + half, abs=0.02)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        found = stats.estimate(rng.exponential(1.0, size=30), resamples=400, seed=trial)
        covered += found.low <= 1.0 <= found.high
    assert 0.87 <= covered / 200 <= 0.99


@settings(max_examples=40, deadline=None)
@given(st.lists(numbers, min_size=2, max_size=8))
def test_p_equals_the_enumeration_of_all_sign_flips(values):
    observed = abs(np.mean(values))
    means = [
        abs(np.mean(np.array(signs) * values))
        for signs in itertools.product((1, -1), repeat=len(values))
    ]
    naive = np.mean([m >= observed * (1 - 1e-12) - 1e-12 for m in means])
    assert stats.sign_flip_p(values) == pytest.approx(naive)


@settings(max_examples=40, deadline=None)
@given(st.lists(numbers, min_size=2, max_size=12))
def test_the_interval_lies_inside_the_data(values):
    found = stats.estimate(values, resamples=199)
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9


@given(pvalues)
def test_holm_rejects_what_the_step_down_procedure_rejects(ps):
    alpha = 0.05
    rejected = set()
    for rank, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        if (len(ps) - rank) * ps[index] > alpha:
            break
        rejected.add(index)
    assert {i for i, p in enumerate(stats.holm(ps)) if p <= alpha} == rejected


@given(pvalues)
def test_holm_never_lowers_a_p_and_keeps_their_order(ps):
    adjusted = stats.holm(ps)
    assert all(p <= a <= 1.0 for p, a in zip(ps, adjusted, strict=True))
    assert all(
        adjusted[i] <= adjusted[j]
        for i, j in itertools.permutations(range(len(ps)), 2)
        if ps[i] < ps[j]
    )


def test_holm_gives_the_known_example():
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_a_family_skips_what_has_no_pairs_and_adjusts_the_rest():
    strong, none, weak = stats.holm_family([[1.0, 1.1] * 5, [], [1.0, -1.0, 0.2, -0.1]])
    assert none is None
    assert strong.separated
    assert not weak.separated
    assert strong.p_holm == pytest.approx(2 * strong.p)


def test_a_detectable_difference_shrinks_with_n_and_grows_with_the_spread() -> None:
    rng = np.random.default_rng(0)
    wide, narrow = rng.normal(0, 2, 16), rng.normal(0, 1, 64)
    few, many = stats.detectable(list(narrow[:16])), stats.detectable(list(narrow))
    assert few is not None
    assert many is not None
    assert many < few
    assert stats.detectable(list(2 * wide)) == pytest.approx(2 * (stats.detectable(wide) or 0))
    assert stats.detectable([1.0]) is None
    assert stats.detectable([1.0, 1.0, 1.0]) is None


def test_a_difference_of_the_detectable_size_is_found_four_times_in_five() -> None:
    from scipy.stats import ttest_1samp

    rng = np.random.default_rng(1)
    n, true_sd = 16, 3.0
    sample = rng.normal(0, 1, n)
    sample = (sample - sample.mean()) / sample.std(ddof=1) * true_sd
    effect = stats.detectable(list(sample))
    trials = rng.normal(effect, true_sd, (4000, n))
    found = (ttest_1samp(trials, 0.0, axis=1).pvalue < 0.05).mean()
    assert found == pytest.approx(0.8, abs=0.03)
