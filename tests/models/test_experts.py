"""Two experts are one denoiser: sampled, recorded, quantized, saved and loaded as such."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from harness.artifact.quantize import _multiplications, quantize, unprompted_outputs
from harness.artifact.verify import verify
from harness.bits import BitSpec
from harness.errors import HarnessError, UsageError
from harness.method import QuantContext, resolve_options
from harness.models.block_input import Sample
from harness.models.experts import (
    FIRST,
    SECOND,
    WanExperts,
    config_of,
    denoiser_of,
    join_experts_,
    part_experts_,
)
from harness.models.families import family_by_name
from harness.models.families.base import target_linears
from harness.models.offload import BLOCKS, COMPONENTS, computing_device, place_
from harness.models.sample import denoise, sample_clip
from harness.models.trajectories import CalibrationPool, record_pool
from harness.plan.registry import load_method
from harness.quant.layers.artifact import load_artifact_, load_quantized, open_quantized_denoiser
from harness.quant.layers.layers import quantized_layers
from harness.quant.layers.policy import policies_of
from harness.testing.conformance import PROMPTS
from harness.testing.miniatures import TINY_GEN, wan

if TYPE_CHECKING:
    from pathlib import Path

FAMILY = family_by_name("wan")
GEN = replace(TINY_GEN, guidance_2=2.0)


def pair() -> Any:
    return wan(experts=2)


def joined() -> Any:
    pipeline = pair()
    join_experts_(pipeline)
    return pipeline


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> CalibrationPool:
    return record_pool(
        joined(), PROMPTS[:2], GEN, seed=0, folder=tmp_path_factory.mktemp("pool"),
        progress=lambda done, text: None,
    )  # fmt: skip


def run(pipeline: Any, name: str, pool: CalibrationPool | None, out: Path, **options: Any) -> Any:
    method = load_method(name)
    bits = "w4a6" if name == "dvdquant" else "w4a8"
    return quantize(
        pipeline, method, bits=BitSpec.parse(bits), options=options, family="wan", gen=GEN,
        pool=pool.folder if pool is not None and method.needs_calibration else None, seed=0,
        out=out, progress=lambda done, text: None,
    )  # fmt: skip


def test_a_joined_pipeline_samples_what_the_pipeline_with_two_samples() -> None:
    apart, one = pair(), joined()
    assert one.transformer is one.transformer_2
    theirs, mine = (sample_clip(p, PROMPTS[0].text, GEN, seed=3) for p in (apart, one))
    assert torch.equal(mine.latents, theirs.latents)


def test_the_second_scale_guides_the_steps_of_the_second_expert_only() -> None:
    pipeline = joined()
    steps: dict[float | None, list[Tensor]] = {}
    for scale in (None, 2.0):
        found = steps.setdefault(scale, [])
        denoise(
            pipeline, "a red circle", replace(GEN, guidance_2=scale), seed=0,
            on_step=lambda step, latents, found=found: found.append(latents),
        )  # fmt: skip
    same = [torch.equal(a, b) for a, b in zip(steps[None], steps[2.0], strict=True)]
    assert same == [True, True, False, False]


def test_a_pool_says_who_served_and_gives_each_its_own_steps(pool: CalibrationPool) -> None:
    assert pool.parts == (FIRST, FIRST, SECOND, SECOND)
    boundary = 0.9 * 1000
    high, low = pool.of_part(FIRST), pool.of_part(SECOND)
    assert high.timesteps + low.timesteps == pool.timesteps
    assert min(high.timesteps) >= boundary > max(low.timesteps)
    assert high.forwards + low.forwards == pool.forwards
    for own, start in ((high, 0), (low, 2)):
        assert own.steps == 2
        for sample in own.samples():
            whole = Sample(sample.prompt, start + sample.step)
            call, exact = own.call(sample), pool.call(whole)
            assert all(
                torch.equal(call.arguments[n], v)
                for n, v in exact.arguments.items() if isinstance(v, Tensor)
            )  # fmt: skip
            assert torch.equal(own.latent(sample), pool.latent(whole))
        after = own.latent(Sample(1, own.steps))
        assert torch.equal(after, pool.latent(Sample(1, start + 2)))
    with pytest.raises(HarnessError, match="serves none"):
        pool.of_part("transformer_3")


def test_every_linear_of_both_experts_is_a_target_once() -> None:
    denoiser = joined().transformer
    names = set(target_linears(FAMILY, denoiser))
    own = set(target_linears(FAMILY, denoiser.get_submodule(FIRST)))
    assert names == {f"{part}.{name}" for part in (FIRST, SECOND) for name in own}


def test_the_probe_of_a_part_sees_its_steps() -> None:
    pipeline = joined()
    parts = [pipeline.transformer.get_submodule(name) for name in (FIRST, SECOND)]
    each = [unprompted_outputs(pipeline, GEN, 0, part=part) for part in parts]
    whole = unprompted_outputs(pipeline, GEN, 0)
    assert [len(found) for found in each] == [2, 2]
    assert all(torch.equal(a, b) for a, b in zip([*each[0], *each[1]], whole, strict=True))


@pytest.mark.parametrize("name", ["rtn", "gptq", "smoothquant"])
def test_an_artifact_holds_both_and_loads_into_a_pipeline_with_two(
    name: str, pool: CalibrationPool, tmp_path: Path
) -> None:
    made = joined()
    report = run(made, name, pool, tmp_path)
    layers = set(quantized_layers(made.transformer))
    assert layers == set(target_linears(FAMILY, made.transformer))
    assert {layer.name for layer in report.layers} == layers
    told = json.loads((tmp_path / "report.json").read_text())["footprint"]
    total = sum(p.numel() for p in made.transformer.parameters())
    assert told["total_parameters"] > total / 2
    assert told["avg_a_bits"] == 8
    verify(joined(), tmp_path, family="wan", bits=BitSpec.parse("w4a8"), fresh=True)
    mine = sample_clip(made, PROMPTS[0].text, GEN, seed=1)
    apart = pair()
    assert load_quantized(apart, tmp_path) is apart
    assert quantized_layers(apart.transformer)
    assert quantized_layers(apart.transformer_2)
    assert torch.equal(sample_clip(apart, PROMPTS[0].text, GEN, seed=1).latents, mine.latents)


def test_each_expert_is_calibrated_on_its_own_steps(pool: CalibrationPool, tmp_path: Path) -> None:
    """The second expert's codes are those that its own steps alone give."""
    made = joined()
    run(made, "gptq", pool, tmp_path)
    alone = pair().transformer_2
    method = load_method("gptq")
    ctx = QuantContext(
        bits=BitSpec.parse("w4a8"), options=resolve_options(method, {}), family=FAMILY,
        device=torch.device("cpu"), seed=0, pool=pool.of_part(SECOND), data_free=False,
    )  # fmt: skip
    method.quantize_(alone, ctx)
    both = made.transformer.get_submodule(SECOND).state_dict()
    assert all(torch.equal(both[name], value) for name, value in alone.state_dict().items())
    other = copy.deepcopy(pair().transformer_2)
    method.quantize_(other, replace(ctx, pool=pool.of_part(FIRST)))
    assert any(not torch.equal(both[n], v) for n, v in other.state_dict().items())


def test_step_policies_are_each_experts_own_and_come_back(
    pool: CalibrationPool, tmp_path: Path
) -> None:
    made = joined()
    run(made, "dvdquant", pool, tmp_path)
    assert set(policies_of(made.transformer)) == {FIRST, SECOND}
    fresh = joined()
    load_artifact_(fresh.transformer, tmp_path)
    theirs, mine = (sample_clip(p, PROMPTS[0].text, GEN, seed=1) for p in (made, fresh))
    assert torch.equal(mine.latents, theirs.latents)
    for part in (FIRST, SECOND):
        traces = [policies_of(p.transformer)[part].trace for p in (made, fresh)]
        assert len(traces[0]) == 2
        assert traces[0] == traces[1]


def test_work_of_an_expert_counts_as_often_as_it_serves(tmp_path: Path) -> None:
    """At 3 of 4 low-noise steps the low-noise expert's widths weigh three times as much."""
    made = joined()
    made.transformer.boundary = 990.0
    run(made, "rtn", None, tmp_path)
    names = list(target_linears(FAMILY, made.transformer))
    work = _multiplications(made, GEN, "", names, dict.fromkeys(names, 1))
    for name in target_linears(FAMILY, made.transformer.get_submodule(FIRST)):
        assert work[f"{SECOND}.{name}"] == 3 * work[f"{FIRST}.{name}"] > 0


def test_experts_without_a_boundary_or_of_two_kinds_are_refused() -> None:
    pipeline = pair()
    pipeline.register_to_config(boundary_ratio=None)
    with pytest.raises(HarnessError, match="nothing says when each serves"):
        denoiser_of(pipeline)
    other = pair()
    other.transformer_2.register_to_config(ffn_dim=128)
    with pytest.raises(HarnessError, match="not of one architecture"):
        denoiser_of(other)


@pytest.mark.parametrize("offload", [COMPONENTS, BLOCKS])
def test_offloaded_experts_make_the_same_clip(offload: str) -> None:
    exact = sample_clip(joined(), PROMPTS[0].text, GEN, seed=0)
    pipeline = joined()
    place_(pipeline, device="cpu", offload=offload)
    assert computing_device(pipeline).type == "cpu"
    clip = sample_clip(pipeline, PROMPTS[0].text, GEN, seed=0)
    assert torch.equal(clip.latents, exact.latents)


def test_of_experts_alone_each_has_the_others_hook_before_it() -> None:
    pipeline = joined()
    pipeline.register_modules(text_encoder=None, vae=None)
    place_(pipeline, device="cpu", offload=COMPONENTS)
    first, second = (pipeline.transformer.get_submodule(name) for name in (FIRST, SECOND))
    assert first._hf_hook.prev_module_hook.model is second
    assert second._hf_hook.prev_module_hook.model is first


def test_a_denoiser_is_opened_from_its_artifact_as_two_networks(tmp_path: Path) -> None:
    made = joined()
    run(made, "rtn", None, tmp_path)
    opened = open_quantized_denoiser(tmp_path, config=config_of(pair()))
    assert isinstance(opened, WanExperts)
    assert opened.boundary == made.transformer.boundary
    alone = open_quantized_denoiser(tmp_path)
    for one in (opened, alone):
        own, exact = one.state_dict(), made.transformer.state_dict()
        assert own.keys() == exact.keys()
        assert all(torch.equal(own[name], value) for name, value in exact.items())
    with pytest.raises(HarnessError, match="boundary 500"):
        other = pair()
        other.register_to_config(boundary_ratio=0.5)
        load_quantized(other, tmp_path)
    with pytest.raises(HarnessError, match="the artifact is of a WanExperts"):
        load_quantized(wan(), tmp_path)


def test_a_loaded_pair_refuses_saving_of_each_network(tmp_path: Path) -> None:
    run(joined(), "rtn", None, tmp_path)
    apart = load_quantized(pair(), tmp_path)
    for holder in (apart, apart.transformer, apart.transformer_2):
        with pytest.raises(UsageError, match="save_pretrained cannot write"):
            holder.save_pretrained(tmp_path / "no")


def test_parted_experts_stand_under_their_own_names_again() -> None:
    pipeline = joined()
    high, low = (pipeline.transformer.get_submodule(name) for name in (FIRST, SECOND))
    part_experts_(pipeline)
    assert pipeline.transformer is high
    assert pipeline.transformer_2 is low


def test_a_pipeline_of_one_is_left_alone() -> None:
    pipeline = wan()
    join_experts_(pipeline)
    assert not isinstance(pipeline.transformer, WanExperts)
    assert denoiser_of(pipeline) is pipeline.transformer
