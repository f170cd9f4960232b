"""CogVideoX1.5: two latent frames in a patch, rotary positions, a latent frame more than shown."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from harness.artifact.quantize import quantize
from harness.artifact.verify import verify
from harness.bits import BitSpec
from harness.models.block_input import Sample
from harness.models.families import family_by_name
from harness.models.families.base import target_linears
from harness.models.sample import sample_clip
from harness.models.trajectories import CalibrationPool, record_pool
from harness.plan.registry import load_method
from harness.quant.calibration.attention_mass import block_attention_mass
from harness.quant.calibration.capture import run_block
from harness.testing.conformance import PROMPTS
from harness.testing.miniatures import TINY_GEN, cogvideox
from methods.qvdit.frames import frame_layouts
from tests.blocks import first_block_inputs

if TYPE_CHECKING:
    from pathlib import Path

FAMILY = family_by_name("cogvideox")


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return cogvideox(version="1.5")


@pytest.fixture(scope="module")
def pool(pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> CalibrationPool:
    return record_pool(
        pipeline, PROMPTS[:2], TINY_GEN, seed=0, folder=tmp_path_factory.mktemp("pool"),
        progress=lambda done, text: None,
    )  # fmt: skip


@pytest.mark.parametrize("frames", [9, 17])
def test_a_clip_is_as_long_as_asked_though_a_latent_frame_more_is_denoised(
    pipeline: Any, frames: int
) -> None:
    gen = replace(TINY_GEN, frames=frames, steps=1)
    clip = sample_clip(pipeline, "a", gen, seed=0)
    assert clip.frames.shape == (frames, gen.height, gen.width, 3)
    assert clip.latents.shape[1] == (frames - 1) // 4 + 2


@pytest.mark.parametrize("frames", [9, 13, 17])
def test_the_noise_is_of_the_shape_that_the_pipeline_draws_itself(
    pipeline: Any, frames: int
) -> None:
    gen = replace(TINY_GEN, frames=frames)
    seen: list[torch.Size] = []
    handle = pipeline.transformer.register_forward_pre_hook(
        lambda m, a, kwargs: seen.append(kwargs["hidden_states"][:1].shape), with_kwargs=True
    )
    pipeline(
        prompt="a", height=gen.height, width=gen.width, num_frames=frames, num_inference_steps=1,
        max_sequence_length=gen.max_text_tokens, output_type="latent",
    )  # fmt: skip
    handle.remove()
    assert FAMILY.noise_shape(pipeline, gen) == seen[0]


def test_tokens_are_what_is_embedded_value_by_value(pipeline: Any, pool: CalibrationPool) -> None:
    seen: list[Tensor] = []
    handle = pipeline.transformer.patch_embed.proj.register_forward_pre_hook(
        lambda m, a: seen.append(a[0])
    )
    with torch.no_grad():
        pipeline.transformer(**pool.call(Sample(0, 1)).arguments)
    handle.remove()
    assert torch.equal(FAMILY.tokens(pipeline.transformer, pool.latent(Sample(0, 1))), seen[0][0])


def test_a_frame_of_tokens_is_two_latent_frames(pipeline: Any, pool: CalibrationPool) -> None:
    latent = pool.latent(Sample(0, 1))
    cut = FAMILY.frames(pipeline.transformer, latent, {})
    assert cut.shape[:2] == (1, 2)
    for i, run in enumerate(FAMILY.tokens(pipeline.transformer, latent).chunk(2)):
        assert sorted(run.flatten().tolist()) == sorted(cut[0, i].tolist())
        assert torch.equal(cut[0, i], latent[0, 2 * i : 2 * i + 2].flatten())


def test_the_blocks_in_turn_are_the_denoiser_and_every_token_attends(
    pipeline: Any, pool: CalibrationPool
) -> None:
    transformer, seen = pipeline.transformer, []
    handle = transformer.norm_out.register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    with torch.no_grad():
        transformer(**pool.call(Sample(1, 2)).arguments)
    handle.remove()
    (given,) = first_block_inputs(transformer, FAMILY, pool, [Sample(1, 2)])
    for index, (_, block) in enumerate(FAMILY.blocks(transformer)):
        masses = block_attention_mass(block, FAMILY, given)
        assert masses["hidden_states"].shape == (2, 2 * 4 * 4)
        with torch.no_grad():
            given = FAMILY.advance(transformer, index, given, run_block(block, FAMILY, given))
    joint = torch.cat([given.streams[name] for name in FAMILY.attention_order], 1)
    found = transformer.norm_final(joint)[:, -given.streams["hidden_states"].shape[1] :]
    torch.testing.assert_close(found, seen[0], rtol=1e-4, atol=1e-4)


def test_frame_wise_methods_find_the_frames_behind_the_text(
    pipeline: Any, pool: CalibrationPool
) -> None:
    from harness.models.block_input import BlockInput

    arguments = pool.call(Sample(0, 1)).arguments
    call = BlockInput(
        sample=Sample(0, 1), streams={"hidden_states": arguments.pop("hidden_states")},
        fixed=arguments,
    )  # fmt: skip
    targets = target_linears(FAMILY, pipeline.transformer)
    layouts = frame_layouts(pipeline.transformer, FAMILY, targets, call)
    tokens = {n for n, group in targets.items() if not group.modulation}
    assert set(layouts) == tokens
    assert {(x.frames, x.text_tokens) for x in layouts.values()} == {(2, TINY_GEN.max_text_tokens)}


@pytest.mark.parametrize("name", ["rtn", "gptq"])
def test_an_artifact_is_made_verified_and_samples_a_clip(
    name: str, pool: CalibrationPool, tmp_path: Path
) -> None:
    method, bits = load_method(name), BitSpec.parse("w4a8")
    made, fresh = cogvideox(version="1.5"), cogvideox(version="1.5")
    quantize(
        made, method, bits=bits, options={}, family="cogvideox", gen=TINY_GEN,
        pool=pool.folder if method.needs_calibration else None, seed=0, out=tmp_path,
        progress=lambda done, text: None,
    )  # fmt: skip
    verify(fresh, tmp_path, family="cogvideox", bits=bits, fresh=True)
    mine, theirs = (sample_clip(p, PROMPTS[0].text, TINY_GEN, seed=1) for p in (made, fresh))
    assert (mine.frames == theirs.frames).all()
    assert len(mine.frames) == TINY_GEN.frames
