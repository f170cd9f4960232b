"""PTQ4DiT's formulas against loops written from the paper, in float64."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.models.trajectories import CalibrationPool
from harness.quant.calibration.samples import uniform_samples
from harness.quant.layers.grid import Affine, code_range, decode, encode, weight_grid
from methods.ptq4dit.adaround import AdaRoundLinear, StaticActivation, annealed_beta
from methods.ptq4dit.method import balancing_scale, spearman_guided_salience


def naive_ranks(values: list[float]) -> list[float]:
    """Average ranks, ties shared."""
    return [sum(v < x for v in values) + (sum(v == x for v in values) + 1) / 2 for x in values]


def naive_ssc(salience: list[list[float]], weight: list[float]) -> list[float]:
    """Eq. 9-11 in loops."""
    rho = []
    for row in salience:
        a, b = naive_ranks(row), naive_ranks(weight)
        ma, mb = sum(a) / len(a), sum(b) / len(b)
        covariance = sum((x - ma) * (y - mb) for x, y in zip(a, b, strict=True))
        spread = math.sqrt(sum((x - ma) ** 2 for x in a) * sum((y - mb) ** 2 for y in b))
        rho.append(covariance / spread)
    total = sum(math.exp(-r) for r in rho)
    return [
        sum(math.exp(-r) / total * row[j] for r, row in zip(rho, salience, strict=True))
        for j in range(len(weight))
    ]


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), timesteps=st.integers(1, 6), channels=st.integers(3, 12))
def test_ssc_weighs_timesteps_by_their_rank_correlation(
    seed: int, timesteps: int, channels: int
) -> None:
    draw = np.random.default_rng(seed)
    salience = draw.uniform(0.1, 5, size=(timesteps, channels)).astype(np.float32)
    weight = draw.uniform(0.1, 5, size=channels).astype(np.float32)
    got = spearman_guided_salience(torch.tensor(salience), torch.tensor(weight)).tolist()
    expected = naive_ssc(salience.astype(float).tolist(), weight.astype(float).tolist())
    assert got == pytest.approx(expected, rel=1e-5)


def test_a_timestep_that_agrees_with_the_weight_counts_less() -> None:
    weight = torch.tensor([1.0, 2.0, 3.0])
    agreeing, opposing = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([3.0, 2.0, 1.0])
    mixed = spearman_guided_salience(torch.stack([agreeing, opposing]), weight)
    middle = (agreeing + opposing) / 2
    assert float((mixed - opposing).abs().sum()) < float((middle - opposing).abs().sum())


@settings(deadline=None)
@given(seed=st.integers(0, 10_000))
def test_csb_makes_activation_and_weight_maxima_equal(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = torch.rand(20, 6, generator=draw) * torch.rand(6, generator=draw) * 10 + 0.01
    w = torch.rand(5, 6, generator=draw) + 0.01
    scale = balancing_scale(x.abs().amax(0), w.abs().amax(0))
    balanced = (x / scale).abs().amax(0), (w * scale).abs().amax(0)
    torch.testing.assert_close(*balanced)
    expected = (x.abs().amax(0) * w.abs().amax(0)).sqrt()
    torch.testing.assert_close(balanced[0], expected)
    torch.testing.assert_close((x / scale) @ (w * scale).T, x @ w.T)


def test_a_channel_without_weight_or_activation_is_left_alone() -> None:
    scale = balancing_scale(torch.tensor([0.0, 4.0, 1.0]), torch.tensor([1.0, 0.0, 1.0]))
    assert scale.tolist() == [1.0, 1.0, 1.0]


def test_uniform_samples_cover_timesteps_evenly_and_turn_through_the_prompts() -> None:
    pool = CalibrationPool(
        folder=Path("unused"), prompts=tuple("abcdefghij"), timesteps=tuple(range(16)),
        branches=2, forwards=0, seconds=0.0,
    )  # fmt: skip
    chosen = uniform_samples(pool, 40, 10)
    assert len(set(chosen)) == 40
    steps = sorted({s.step for s in chosen})
    assert len(steps) == 10
    assert (steps[0], steps[-1]) == (0, 15)
    assert all(sum(s.step == t for s in chosen) == 4 for t in steps)
    assert {s.prompt for s in chosen} == set(range(10))


@pytest.mark.parametrize(("count", "timesteps"), [(4, 10), (35, 10), (16, 16), (7, 3)])
def test_fewer_samples_than_a_full_round_still_cover_the_whole_trajectory(
    count: int, timesteps: int
) -> None:
    pool = CalibrationPool(
        folder=Path("unused"), prompts=tuple("abcdefghij"), timesteps=tuple(range(16)),
        branches=2, forwards=0, seconds=0.0,
    )  # fmt: skip
    chosen = uniform_samples(pool, count, timesteps)
    assert len(set(chosen)) == len(chosen) == count
    steps = [s.step for s in chosen]
    assert (min(steps), max(steps)) == (0, 15)
    counts = [steps.count(t) for t in set(steps)]
    assert max(counts) - min(counts) <= 1


def adaround(bits: int = 3) -> AdaRoundLinear:
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    grid = weight_grid(weight * 1.5, bits, symmetric=False)  # nothing is clamped
    return AdaRoundLinear(weight, None, grid, bits, StaticActivation(None, 16))


def test_untrained_adaround_is_the_weight_itself_and_rounds_to_nearest() -> None:
    layer = adaround()
    x = torch.eye(6)
    torch.testing.assert_close(layer(x).T.detach(), layer.weight, atol=1e-3, rtol=1e-3)
    codes = layer.codes()
    assert codes is not None
    assert layer.grid is not None
    assert torch.equal(codes, encode(layer.weight, layer.grid, 3))


def test_adaround_only_moves_a_weight_to_a_neighbouring_code() -> None:
    layer = adaround()
    assert layer.rounding is not None
    assert layer.grid is not None
    with torch.no_grad():
        layer.rounding.copy_(torch.randn(4, 6, generator=torch.Generator().manual_seed(1)) * 9)
    codes = layer.codes()
    assert codes is not None
    distance = (decode(codes, layer.grid) - layer.weight).abs() / layer.grid.scale
    assert float(distance.max()) < 1 + 1e-5
    low, high = code_range(3, False)
    assert low <= float(codes.min()) <= float(codes.max()) <= high


def test_the_regulariser_is_zero_exactly_when_every_weight_has_decided() -> None:
    layer = adaround()
    assert float(layer.regulariser(2.0).detach()) > 0
    assert layer.rounding is not None
    with torch.no_grad():
        layer.rounding.fill_(20.0)
    assert float(layer.regulariser(2.0).detach()) == pytest.approx(0)


def test_beta_waits_through_the_warm_up_and_then_falls_linearly() -> None:
    assert annealed_beta(0.1, 0.2, 20, 2) is None
    assert annealed_beta(0.2, 0.2, 20, 2) == pytest.approx(20)
    assert annealed_beta(0.6, 0.2, 20, 2) == pytest.approx(11)
    assert annealed_beta(1.0, 0.2, 20, 2) == pytest.approx(2)


def test_a_learned_static_range_gives_back_its_own_grid() -> None:
    grid = Affine(torch.tensor(0.037), torch.tensor(5.0))
    low, high = StaticActivation(grid, 4).limits() or (0.0, 0.0)
    assert (high - low) / 15 == pytest.approx(0.037)
    assert round(-low / ((high - low) / 15)) == 5
