"""Sample selection against formulas written out in numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from harness.models.block_input import Sample
from harness.models.trajectories import CalibrationPool
from harness.quant.calibration.salience import (
    Salience,
    choose_samples,
    diffusion_salience,
    min_max,
    quantization_salience,
)

PROMPTS, STEPS = 6, 5


@pytest.fixture
def pool() -> CalibrationPool:
    return CalibrationPool(
        folder=Path("unused"), prompts=tuple("abcdef"), timesteps=tuple(range(STEPS)),
        branches=2, forwards=0, seconds=0.0,
    )  # fmt: skip


@pytest.fixture
def salience() -> Salience:
    generator = torch.Generator().manual_seed(0)
    draw = torch.rand(2, PROMPTS, STEPS, generator=generator, dtype=torch.float64)
    return Salience(min_max(draw[0]), min_max(draw[1]))


def test_c_diff_is_the_relative_squared_change() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 3, 4))
    expected = ((a - b) ** 2).sum() / (a**2).sum()
    assert diffusion_salience(torch.tensor(a), torch.tensor(b)) == pytest.approx(expected)


@pytest.mark.parametrize(("norm", "order"), [("fro", "fro"), ("spectral", 2)])
def test_c_quant_is_the_norm_of_the_gram_matrix(norm: str, order: str | int) -> None:
    x = np.random.default_rng(1).normal(size=(7, 4))
    expected = np.linalg.norm(x.T @ x, ord=order)
    assert quantization_salience(torch.tensor(x), norm) == pytest.approx(expected)


def test_sds_takes_the_largest_products_of_the_whole_pool(
    pool: CalibrationPool, salience: Salience
) -> None:
    chosen = choose_samples("sds", 7, pool, salience, torch.Generator())
    scores = (salience.diffusion * salience.quantization).flatten().tolist()
    expected = sorted(range(len(scores)), key=lambda i: -scores[i])[:7]
    assert {s.prompt * STEPS + s.step for s in chosen} == set(expected)


def test_a_candidate_that_is_least_in_either_score_is_never_first(salience: Salience) -> None:
    assert float(salience.product.flatten()[salience.diffusion.argmin()]) == 0.0


def test_the_rules_of_table_6_draw_from_the_prompts_they_name(
    pool: CalibrationPool, salience: Salience
) -> None:
    generator = torch.Generator().manual_seed(0)
    atop = choose_samples("atop", 40, pool, salience, generator)
    assert atop == [Sample(0, t) for t in range(STEPS)]
    atfp = choose_samples("atfp", 10, pool, salience, generator)
    assert len(atfp) == 10
    assert {s.prompt for s in atfp} == set(range(5))
    rtfp = choose_samples("rtfp", 10, pool, salience, generator)
    assert len(set(rtfp)) == 10
    assert max(s.prompt for s in rtfp) < 5
    assert rtfp != atfp


def test_an_unknown_rule_is_refused(pool: CalibrationPool, salience: Salience) -> None:
    with pytest.raises(ValueError, match="unknown selection rule"):
        choose_samples("best", 3, pool, salience, torch.Generator())
