"""The block walk: what it yields, and that its memory does not grow with the samples."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from harness.bits import BitSpec
from harness.method import QuantContext
from harness.models.block_input import BlockInput, Sample
from harness.models.families import family_by_name
from harness.models.families.base import linear_at, target_groups, target_linears
from harness.models.trajectories import CalibrationPool, record_pool
from harness.options import Prefix, SpacedOptions, options
from harness.quant.calibration.capture import observing, run_block
from harness.quant.calibration.samples import uniform_samples
from harness.quant.calibration.spill import SpilledInputs
from harness.quant.calibration.walk import Walk
from harness.quant.layers.activation import ActivationSpec
from harness.quant.layers.apply import activation_of
from harness.quant.layers.layers import replace_module_
from harness.quant.layers.linear import WeightSpec, quantize_linear
from harness.quant.layers.transform import Hadamard
from harness.testing.conformance import PROMPTS, TINY_GEN, tiny_pipeline
from tests.blocks import first_block_inputs, run_block_over, split_branches

if TYPE_CHECKING:
    from collections.abc import Sequence

FAMILY = family_by_name("cogvideox")
CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
MIB = 1 << 20


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> CalibrationPool:
    folder = tmp_path_factory.mktemp("pool")
    return record_pool(
        tiny_pipeline(), PROMPTS, TINY_GEN, seed=0, folder=folder, progress=lambda f, t: None
    )


def context(pool: CalibrationPool, scratch: Path, options: object = None) -> QuantContext:
    return QuantContext(
        bits=BitSpec.parse("w4a4"), options=options, family=FAMILY, device=CPU, pool=pool,
        scratch=scratch,
    )  # fmt: skip


def round_block_(block: nn.Module) -> None:
    for group in target_groups(FAMILY, block):
        for name in group.linears:
            activation = activation_of(group, ActivationSpec(bits=4))
            rounded = quantize_linear(linear_at(block, name), WeightSpec(bits=4), activation)
            replace_module_(block, name, rounded)


def inputs_of(block: nn.Module, name: str, given: Sequence[BlockInput]) -> torch.Tensor:
    """What a linear reads at all samples, a row a token."""
    seen: list[torch.Tensor] = []
    with observing(block, [name], lambda _, x: seen.append(x.flatten(0, -2))):
        for sample in given:
            run_block(block, FAMILY, sample)
    return torch.cat(seen)


def same(left: Sequence[BlockInput], right: Sequence[BlockInput]) -> bool:
    assert len(left) == len(right)
    return all(
        torch.equal(a.streams[k], b.streams[k])
        for a, b in zip(left, right, strict=True)
        for k in b.streams
    )


def test_the_walk_gives_the_blocks_what_the_denoiser_gives_them(
    pool: CalibrationPool, tmp_path: Path
) -> None:
    exact, rounded = tiny_pipeline().transformer, tiny_pipeline().transformer
    samples = uniform_samples(pool, 6, 3)
    inputs = split_branches(first_block_inputs(exact, FAMILY, pool, samples), "alternate")
    given = inputs
    exact_blocks = FAMILY.blocks(exact)
    for step in Walk(rounded, context(pool, tmp_path), samples, inputs="quantized"):
        block = exact_blocks[step.index][1]
        targets = run_block_over(block, FAMILY, inputs)
        assert same(step.inputs, inputs)
        assert same(step.targets, targets)
        assert same(step.given, given)
        assert (step.index == 0) == same(step.given, step.inputs)
        round_block_(step.block)
        inputs, given = targets, run_block_over(step.block, FAMILY, given)
    assert list(tmp_path.iterdir()) == []


def test_an_abandoned_walk_leaves_nothing_on_the_disk(
    pool: CalibrationPool, tmp_path: Path
) -> None:
    walk = iter(Walk(tiny_pipeline().transformer, context(pool, tmp_path), [Sample(0, 0)]))
    next(walk)
    assert list(tmp_path.iterdir()) != []
    walk.close()
    assert list(tmp_path.iterdir()) == []


def test_the_report_counts_every_evaluation(pool: CalibrationPool, tmp_path: Path) -> None:
    transformer, samples = tiny_pipeline().transformer, uniform_samples(pool, 4, 2)
    walk = Walk(transformer, context(pool, tmp_path), samples, branches="both", inputs="quantized")
    for step in walk:
        round_block_(step.block)
    report = walk.report(passes=3, steps=10)
    assert report.calibration_forwards == pool.forwards + ((2 + 3) * 4 + 10) * 2
    assert report.calibration_samples == 4
    assert len(report.layers) == 2 * 8


@options
class WalkOptions(SpacedOptions):
    inputs: Prefix = "fp"


def test_what_is_not_said_is_read_from_the_options(pool: CalibrationPool, tmp_path: Path) -> None:
    chosen = WalkOptions(
        samples=5, timesteps=2, branches="both", modulation="fp", inputs="quantized"
    )
    walk = Walk(tiny_pipeline().transformer, context(pool, tmp_path, chosen))
    assert walk.samples == uniform_samples(pool, 5, 2)
    for walked in walk:
        assert walked.inputs[0].branches == 2
        assert (walked.given is walked.inputs) == (walked.index == 0)
        assert not any(group.modulation for group in walked.groups)
        assert len(walked.groups) == len(FAMILY.groups(walked.block)) - 2


def test_a_pool_that_is_too_small_is_said_in_the_report(
    pool: CalibrationPool, tmp_path: Path
) -> None:
    chosen = SpacedOptions(samples=99, timesteps=2)
    walk = Walk(tiny_pipeline().transformer, context(pool, tmp_path, chosen))
    list(walk)
    short, other = walk.report(notes=["another"]).notes
    assert "6 samples of 99" in short
    assert other == "another"


def test_a_replaced_linear_has_its_output_error_in_the_report(
    pool: CalibrationPool, tmp_path: Path
) -> None:
    exact, rounded = tiny_pipeline().transformer, tiny_pipeline().transformer
    walk = Walk(rounded, context(pool, tmp_path, SpacedOptions(samples=2, timesteps=2)))
    expected = {}
    for walked in walk:
        turns = {}
        for group in walked.groups:
            width = linear_at(walked.block, group.linears[0]).in_features
            turns[group.name] = [Hadamard.random(width, torch.Generator().manual_seed(0))]
        seen = {name: inputs_of(walked.block, name, walked.given) for name, *_ in walked.linears()}
        hessians = walked.hessians(turns)
        for name, linear, group in walked.linears():
            spec, keep = WeightSpec(bits=4), ActivationSpec(bits=16)
            layer = quantize_linear(linear, spec, keep, transforms=turns[group.name])
            whole, part = linear(seen[name]), layer(seen[name])
            bias = 0 if linear.bias is None else linear.bias
            wrong, size = (part - whole).square().sum(), (whole - bias).square().sum()
            expected[f"{walked.name}.{name}"] = float(wrong / size)
            measured = None if group.modulation else hessians[name]
            walked.replace_(name, layer, hessian=measured)
            assert walked.block.get_submodule(name) is layer
    assert walk.widths == {linear_at(exact, n).in_features for n in target_linears(FAMILY, exact)}
    for layer in walk.report().layers:
        if target_linears(FAMILY, exact)[layer.name].modulation:
            assert layer.error is None
        else:
            assert layer.error == pytest.approx(expected[layer.name], rel=1e-3)


def test_an_error_that_the_method_measured_is_taken_as_it_is(
    pool: CalibrationPool, tmp_path: Path
) -> None:
    walk = Walk(tiny_pipeline().transformer, context(pool, tmp_path), [Sample(0, 0)])
    for walked in walk:
        for name, linear, _ in walked.linears():
            layer = quantize_linear(linear, WeightSpec(bits=4), ActivationSpec(bits=4))
            walked.replace_(name, layer, error=0.25)
    assert {layer.error for layer in walk.report().layers} == {0.25}


def test_samples_come_back_from_the_disk_as_they_went(tmp_path: Path) -> None:
    both = torch.randn(2, 3, 4)
    given = BlockInput(
        sample=Sample(1, 2),
        streams={"hidden_states": both[:1]},
        fixed={"temb": both[1:], "rotary": (both, [None, 3, "x"]), "flags": {"deep": True}},
    )
    back = SpilledInputs(tmp_path, CPU).extend([given])[-1]
    assert back.sample == Sample(1, 2)
    assert torch.equal(back.streams["hidden_states"], both[:1])
    assert torch.equal(back.fixed["temb"], both[1:])
    assert torch.equal(back.fixed["rotary"][0], both)
    assert back.fixed["rotary"][1] == [None, 3, "x"]
    assert back.fixed["flags"] == {"deep": True}


def test_an_argument_that_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    given = BlockInput(sample=Sample(0, 0), streams={}, fixed={"cache": object()})
    with pytest.raises(TypeError, match="cannot be kept on disk"):
        SpilledInputs(tmp_path, CPU).extend([given])


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's peak counter")
def test_the_peak_memory_of_a_calibration_does_not_grow_with_the_clips(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.quant.walk_memory", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    peak = json.loads(done.stdout)
    assert peak["many"] - peak["few"] < 16 * MIB  # 36 more samples are 72 MiB
    assert peak["held"] - peak["few"] > 64 * MIB  # the measurement sees what is held
