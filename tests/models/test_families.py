"""What is said about a family holds on its miniature: blocks, branches, tokens, attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from harness.models.block_input import Sample
from harness.models.families import FAMILIES, family_by_name, family_name_of
from harness.models.families.base import target_linears
from harness.models.sample import denoise, denoiser_step, initial_noise, sample_clip
from harness.models.trajectories import record_pool
from harness.quant.calibration.attention_mass import block_attention_mass
from harness.quant.calibration.capture import run_block
from harness.testing.conformance import PROMPTS, Bench, make_bench
from harness.testing.miniatures import GENS, MINIATURES, wan
from tests.blocks import first_block_inputs

if TYPE_CHECKING:
    from pathlib import Path

    from harness.models.block_input import BlockInput
    from harness.spec import GenSpec

HEADS = 2
BRANCHES = {"cogvideox": 2, "hunyuanvideo": 1, "hunyuanvideo15": 2, "wan": 2, "ltx": 2, "latte": 2}


@pytest.fixture(scope="module", params=FAMILIES)
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return make_bench(request.param, tmp_path_factory.mktemp(request.param))


@torch.no_grad()
def walk(bench: Bench, given: BlockInput) -> Tensor:
    """The last block's video stream as the denoiser's output norm gets it."""
    facts, transformer = family_by_name(bench.family), bench.pipeline.transformer
    for index, (_, block) in enumerate(facts.blocks(transformer)):
        given = facts.advance(transformer, index, given, run_block(block, facts, given))
    found = given.streams[facts.video_stream]
    if bench.family == "cogvideox":  # which norms text and video together before its output norm
        joint = torch.cat([given.streams[name] for name in facts.attention_order], 1)
        found = transformer.norm_final(joint)[:, -found.shape[1] :]
    return found


def test_every_linear_of_every_block_is_a_target_once(bench: Bench) -> None:
    facts, transformer = family_by_name(bench.family), bench.pipeline.transformer
    inside = [
        f"{name}.{inner}"
        for name, block in facts.blocks(transformer)
        for inner, module in block.named_modules()
        if isinstance(module, nn.Linear)
    ]
    assert sorted(target_linears(facts, transformer)) == sorted(inside)
    assert family_name_of(type(transformer).__name__) == bench.family


def test_the_blocks_in_turn_are_the_denoiser_for_all_branches_and_for_each(bench: Bench) -> None:
    facts, transformer = family_by_name(bench.family), bench.pipeline.transformer
    seen: list[Tensor] = []
    handle = transformer.norm_out.register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    bench.output(transformer)
    handle.remove()
    (whole,) = first_block_inputs(transformer, facts, bench.pool, [Sample(1, 2)])
    assert whole.branches == BRANCHES[bench.family]
    torch.testing.assert_close(walk(bench, whole), seen[0], rtol=1e-4, atol=1e-4)
    for i, exact in enumerate(seen[0].chunk(whole.branches)):
        torch.testing.assert_close(walk(bench, whole.branch(i)), exact, rtol=1e-4, atol=1e-4)


def test_a_recorded_call_gives_what_the_sampler_got_the_conditional_branch_last(
    bench: Bench, tmp_path: Path
) -> None:
    pipeline, gen = bench.pipeline, GENS[bench.family]
    seen: list[Tensor] = []
    handle = pipeline.transformer.register_forward_hook(lambda m, a, out: seen.append(out[0]))
    pool = record_pool(
        pipeline, PROMPTS[:1], gen, seed=3, folder=tmp_path, progress=lambda done, text: None
    )
    handle.remove()
    assert pool.branches == BRANCHES[bench.family]
    assert pool.forwards == gen.steps * pool.branches
    assert pool.steps == gen.steps
    calls = [
        seen[i : i + len(seen) // gen.steps][::-1]
        for i in range(0, len(seen), len(seen) // gen.steps)
    ]
    for step, exact in enumerate(calls):
        with torch.no_grad():
            found = pipeline.transformer(**pool.call(Sample(0, step)).arguments)[0]
        torch.testing.assert_close(found, torch.cat(exact), rtol=1e-4, atol=1e-4)


def drawn(pipeline: Any, gen: GenSpec, seed: int) -> Tensor:
    return initial_noise(pipeline, gen, torch.Generator().manual_seed(seed))


def test_the_noise_is_the_same_whatever_the_denoiser_is_run_in(bench: Bench) -> None:
    gen = GENS[bench.family]
    noise = drawn(bench.pipeline, gen, 5)
    half = MINIATURES[bench.family]().to(torch.bfloat16)
    assert noise.dtype == torch.float32
    assert torch.equal(drawn(half, gen, 5), noise)
    assert not torch.equal(drawn(half, gen, 6), noise)
    first: list[Tensor] = []
    for pipeline in (bench.pipeline, half):
        handle = pipeline.transformer.register_forward_pre_hook(
            lambda m, a, kwargs: first.append(kwargs["hidden_states"][:1].float()), with_kwargs=True
        )
        denoise(pipeline, "a", gen, seed=5, on_step=lambda step, latents: None)
        handle.remove()
    started = first[0], first[len(first) // 2]
    torch.testing.assert_close(started[1], started[0].bfloat16().float(), rtol=0, atol=0)


def test_the_same_seed_gives_the_same_clip(bench: Bench) -> None:
    gen = GENS[bench.family]
    one, two = (sample_clip(bench.pipeline, PROMPTS[0].text, gen, seed=2) for _ in range(2))
    assert torch.equal(one.latents, two.latents)
    assert (one.frames == two.frames).all()
    assert one.frames.shape == (gen.frames, gen.height, gen.width, 3)


def test_one_step_for_timing_runs_all_branches(bench: Bench) -> None:
    rows: list[int] = []
    step = denoiser_step(bench.pipeline, GENS[bench.family])
    handle = bench.pipeline.transformer.register_forward_pre_hook(
        lambda m, a, kwargs: rows.append(kwargs["hidden_states"].shape[0]), with_kwargs=True
    )
    step()
    handle.remove()
    assert sum(rows) == BRANCHES[bench.family]


def test_a_latent_is_cut_into_the_patches_that_are_embedded(bench: Bench) -> None:
    """A linear map of the tokens with the embedding's weights is what the denoiser embeds."""
    facts, transformer = family_by_name(bench.family), bench.pipeline.transformer
    latent = bench.pool.call(Sample(0, 1)).arguments["hidden_states"][:1]
    tokens = facts.tokens(transformer, latent)
    names = {"cogvideox": "patch_embed.proj", "hunyuanvideo": "x_embedder.proj"}
    names |= {
        "hunyuanvideo15": "x_embedder.proj",
        "wan": "patch_embedding",
        "ltx": "proj_in",
        "latte": "pos_embed.proj",
    }
    layer = transformer.get_submodule(names[bench.family])
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda m, a, out: seen.append(out))
    with torch.no_grad():
        transformer(**bench.pool.call(Sample(0, 1)).arguments)
    handle.remove()
    width = layer.weight.shape[0]
    # [frames, width, rows, columns] or [1, width, frames, rows, columns] or [1, tokens, width]
    embedded = seen[0][: max(1, seen[0].shape[0] // bench.pool.branches)]
    if embedded.ndim > 3:
        place = 1
        embedded = embedded.movedim(place, -1)
    expected = tokens @ layer.weight.reshape(width, -1).T + layer.bias
    torch.testing.assert_close(expected, embedded.reshape(-1, width), rtol=1e-4, atol=1e-4)


def test_frames_are_contiguous_runs_of_tokens(bench: Bench) -> None:
    facts, transformer = family_by_name(bench.family), bench.pipeline.transformer
    arguments = bench.pool.call(Sample(0, 1)).arguments
    latent = bench.pool.latent(Sample(0, 1))
    cut = facts.frames(transformer, latent, arguments)
    tokens = facts.tokens(transformer, latent)
    frames = cut.shape[1]
    for i, run in enumerate(tokens.chunk(frames)):
        assert sorted(run.flatten().tolist()) == sorted(cut[0, i].tolist())


def test_attention_mass_covers_the_tokens_that_attend_to_each_other(bench: Bench) -> None:
    facts, transformer = family_by_name(bench.family), bench.pipeline.transformer
    (given,) = first_block_inputs(transformer, facts, bench.pool, [Sample(1, 1)])
    for index, (_, block) in enumerate(facts.blocks(transformer)):
        masses = block_attention_mass(block, facts, given)
        assert list(masses) == list(facts.attention_order)
        for name, mass in masses.items():
            assert mass.shape == given.streams[name].shape[:2]
        joint = torch.cat(list(masses.values()), 1)
        whole = torch.full((joint.shape[0],), float(HEADS * joint.shape[1]))
        hidden = torch.zeros(joint.shape[1], dtype=torch.bool)
        if bench.family == "hunyuanvideo":  # padding behind the text is not attended to
            hidden = ~given.fixed["attention_mask"][0, 0, 0]
        if bench.family == "hunyuanvideo15":  # where it does not attend either
            padding = ~given.fixed["attention_mask"]
            hidden[-padding.shape[1] :] = padding[0]
            whole -= HEADS * padding.sum(1)
        torch.testing.assert_close(joint.sum(1), whole)
        assert bool(hidden.any()) == bench.family.startswith("hunyuanvideo")
        assert bool((joint[0, hidden] == 0).all())
        with torch.no_grad():
            out = run_block(block, facts, given)
        given = facts.advance(transformer, index, given, out)


def test_a_timestep_a_token_is_recorded_like_any_other(tmp_path: Path) -> None:
    """Wan 2.2 TI2V hands every token its own timestep."""
    pipeline: Any = wan(expand_timesteps=True)
    pool = record_pool(
        pipeline, PROMPTS[:1], GENS["wan"], seed=0, folder=tmp_path, progress=lambda d, t: None
    )
    call = pool.call(Sample(0, 1))
    assert call.arguments["timestep"].shape == (2, 48)
    facts = family_by_name("wan")
    (whole,) = first_block_inputs(pipeline.transformer, facts, pool, [Sample(0, 1)])
    assert whole.fixed["temb"].ndim == 4
    assert whole.branch(1).fixed["temb"].shape[0] == 1
    assert len(set(pool.timesteps)) == pool.steps
