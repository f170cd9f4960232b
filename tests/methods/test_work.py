"""What a method says beforehand that it will compute is what its report counts afterwards."""

from __future__ import annotations

import copy
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

import pytest
import torch

from harness.bits import BitSpec
from harness.method import Method, QuantContext, Work, resolve_options
from harness.models.families import family_by_name
from harness.models.trajectories import CalibrationPool, record_pool
from harness.testing.conformance import PROMPTS, TINY_GEN, tiny_pipeline

if TYPE_CHECKING:
    from torch import nn

SMALL = {"samples": 2, "timesteps": 1, "branches": "cond", "epochs": 1, "iterations": 2}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, CalibrationPool]:
    folder = tmp_path_factory.mktemp("pool")
    pipeline = tiny_pipeline()
    pool = record_pool(
        pipeline, PROMPTS, TINY_GEN, seed=0, folder=folder, progress=lambda done, text: None
    )
    return pipeline.transformer, pool


def method_named(name: str) -> Method:
    (point,) = entry_points(group="harness.methods", name=name)
    method: Method = point.load()()
    return method


@pytest.mark.parametrize(
    "name",
    [
        "s2q", "flatquant", "ptq4dit", "svdquant", "qdit", "viditq", "gptq", "rtn-gptq", "awq",
        "smoothquant", "quarot",
    ],
)  # fmt: skip
def test_the_work_is_what_the_report_counts(
    bench: tuple[nn.Module, CalibrationPool], name: str
) -> None:
    method, bits = method_named(name), BitSpec.parse("w4a4")
    known = set(resolve_options(method, {}).__dataclass_fields__)
    options = resolve_options(method, {k: v for k, v in SMALL.items() if k in known})
    work = method.work(options, bits)
    assert work is not None
    ctx = QuantContext(
        bits=bits, options=options, family=family_by_name("cogvideox"),
        device=torch.device("cpu"), pool=bench[1],
    )  # fmt: skip
    report = method.quantize_(copy.deepcopy(bench[0]), ctx)
    assert work.samples == report.calibration_samples == 2
    spent = report.calibration_forwards - bench[1].forwards
    assert work.passes * work.samples + work.steps == spent
    assert (work.steps > 0) == (name in ("s2q", "flatquant", "ptq4dit"))


def test_nothing_is_trained_at_16_bits_and_nothing_run_by_round_to_nearest() -> None:
    identity = BitSpec.parse("w16a16")
    for name in ("s2q", "flatquant", "ptq4dit", "qvdit"):
        method = method_named(name)
        work = method.work(resolve_options(method, {}), identity)
        assert work is not None
        assert work.steps == work.denoiser_steps == 0
    method = method_named("rtn")
    assert method.work(resolve_options(method, {}), identity) == Work()


def test_the_defaults_are_the_papers_budgets() -> None:
    bits = BitSpec.parse("w4a4")
    for name, steps in (("s2q", 600), ("flatquant", 600), ("ptq4dit", 600)):
        method = method_named(name)
        work = method.work(resolve_options(method, {}), bits)
        assert work is not None
        assert work.steps == steps


def test_a_search_is_counted_at_its_most_or_said_to_be_unknown() -> None:
    bits = BitSpec.parse("w4a4")
    qdit, viditq = method_named("qdit"), method_named("viditq")
    found = qdit.work(resolve_options(qdit, {"search": True}), bits)
    assert found is not None
    # 50 configurations and 10 rounds of as many, the reference; 8 samples, two guidance branches
    assert found.denoiser_passes == 2 * 8 * (50 * 11 + 1)
    mixed = resolve_options(viditq, {"mixed": "metric-decoupled"})
    assert viditq.work(mixed, bits) is None
    assert viditq.work(mixed, BitSpec.parse("w8a8")) is not None


def test_a_method_that_does_not_say_has_unknown_work() -> None:
    assert Method().work(None, BitSpec.parse("w4a4")) is None


def test_time_inside_a_part_of_a_part_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("harness.method.time.perf_counter", lambda: now[0])
    ctx = QuantContext(
        bits=BitSpec.parse("w4a4"), options=None, family=family_by_name("cogvideox"),
        device=torch.device("cpu"),
    )  # fmt: skip
    with ctx.part("other"):
        now[0] += 1
        for _ in range(2):
            with ctx.part("training"):
                now[0] += 10
                with ctx.part("statistics"):
                    now[0] += 100
    assert ctx.seconds == {"statistics": 200.0, "training": 20.0, "other": 1.0}
