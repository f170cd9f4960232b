"""FlatQuant: S2Q-VDiT's trainer on random data and uniform tokens, and nothing else."""

from __future__ import annotations

import copy
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from harness.bits import BitSpec
from harness.errors import UsageError
from harness.method import Method, QuantContext, QuantReport, resolve_options
from harness.models.block_input import Sample
from harness.models.families import family_by_name
from harness.models.trajectories import CalibrationPool, record_pool
from harness.testing.conformance import PROMPTS, TINY_GEN, tiny_pipeline
from methods.flatquant.method import FlatQuant, FlatQuantOptions, random_samples
from methods.s2q.method import S2Q, S2QOptions

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, CalibrationPool]:
    pipeline, folder = tiny_pipeline(), tmp_path_factory.mktemp("pool")
    pool = record_pool(
        pipeline, PROMPTS, TINY_GEN, seed=0, folder=folder, progress=lambda done, text: None
    )
    return pipeline.transformer, pool


def quantized(
    bench: tuple[nn.Module, CalibrationPool], method: Method, **options: Any
) -> tuple[dict[str, Tensor], QuantReport]:
    transformer = copy.deepcopy(bench[0])
    ctx = QuantContext(
        bits=BitSpec.parse("w4a6"), options=method.Options(samples=5, epochs=2, **options),
        family=family_by_name("cogvideox"), device=torch.device("cpu"), pool=bench[1],
    )  # fmt: skip
    report = method.quantize_(transformer, ctx)
    return transformer.state_dict(), report


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_it_is_s2q_without_salient_data_and_token_weights(
    bench: tuple[nn.Module, CalibrationPool],
) -> None:
    flat, flat_report = quantized(bench, FlatQuant(), selection="rtfp")
    alike, alike_report = quantized(bench, S2Q(), selection="rtfp", token_weights=False)
    assert same(flat, alike)
    assert flat_report.layers == alike_report.layers
    assert flat_report.calibration_forwards == alike_report.calibration_forwards
    assert flat_report.curves == alike_report.curves
    weighted, _ = quantized(bench, S2Q(), selection="rtfp")
    assert not same(flat, weighted)


def test_every_default_that_s2q_has_too_is_the_same() -> None:
    flat, s2q = FlatQuantOptions(), S2QOptions()
    own, theirs = ({f.name for f in fields(kind)} for kind in (FlatQuantOptions, S2QOptions))
    shared = own - {"selection"}
    assert shared <= theirs
    for name in sorted(shared):
        assert getattr(flat, name) == getattr(s2q, name), name


def test_random_data_is_not_s2qs_data(bench: tuple[nn.Module, CalibrationPool]) -> None:
    flat, report = quantized(bench, FlatQuant())
    salient, _ = quantized(bench, FlatQuant(), selection="sds")
    assert not same(flat, salient)
    assert report.calibration_samples == 5
    assert len(report.curves["loss_block_0"]) == 10
    assert report.notes == ("trained for 2 epochs a block, 15 in the paper",)


def pool_of(folder: Path, prompts: int, steps: int) -> CalibrationPool:
    return CalibrationPool(
        folder=folder, prompts=tuple(f"p{i}" for i in range(prompts)),
        timesteps=tuple(float(t) for t in range(steps)), branches=2, forwards=0, seconds=0.0,
    )  # fmt: skip


def test_random_samples_are_distinct_and_reach_every_candidate(tmp_path: Path) -> None:
    pool, seen = pool_of(tmp_path, 7, 3), dict.fromkeys(pool_of(tmp_path, 7, 3).samples(), 0)
    for seed in range(200):
        drawn = random_samples(pool, 6, torch.Generator().manual_seed(seed))
        assert len(set(drawn)) == 6
        assert drawn == sorted(drawn)
        for sample in drawn:
            seen[sample] += 1
    # 200 x 6 draws from 21 candidates: 57 each, standard deviation below 7
    assert min(seen.values()) > 57 - 5 * 7
    assert max(seen.values()) < 57 + 5 * 7
    assert random_samples(pool, 99, torch.Generator()) == list(pool.samples())
    assert isinstance(drawn[0], Sample)


@pytest.mark.parametrize(
    "options", [{"selection": "rand"}, {"epochs": -1}, {"rounding": "up"}, {"smoothing": 1.5}]
)
def test_what_cannot_be_meant_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        resolve_options(FlatQuant(), options)
