"""What HunyuanVideo-1.5 has of its own: a guider, no callback, three texts, a condition beside."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from harness.errors import HarnessError
from harness.models.block_input import Sample
from harness.models.families import family_by_name
from harness.models.sample import denoise
from harness.models.trajectories import record_pool
from harness.spec import GenSpec, Prompt
from harness.testing.miniatures import TINY_GEN, hunyuanvideo15

if TYPE_CHECKING:
    from pathlib import Path

QUOTED = 'a red circle on "blue"'


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return hunyuanvideo15()


def calls_of(pipeline: Any, gen: GenSpec, text: str = QUOTED) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = []
    handle = pipeline.transformer.register_forward_pre_hook(
        lambda m, a, kwargs: seen.append(kwargs), with_kwargs=True
    )
    denoise(pipeline, text, gen, seed=0, on_step=lambda step, latents: None)
    handle.remove()
    return seen


def final(pipeline: Any, gen: GenSpec) -> Tensor:
    found: list[Tensor] = []
    denoise(pipeline, QUOTED, gen, seed=0, on_step=lambda step, latents: found.append(latents))
    assert len(found) == gen.steps
    return found[-1]


def test_the_scale_of_the_settings_guides_and_not_that_of_the_guider(pipeline: Any) -> None:
    assert not torch.equal(
        final(pipeline, TINY_GEN), final(pipeline, replace(TINY_GEN, guidance=6.0))
    )
    pipeline.guider.guidance_scale = 2.0
    again = final(pipeline, TINY_GEN)
    pipeline.guider.guidance_scale = 6.0
    assert torch.equal(final(pipeline, TINY_GEN), again)


def test_a_reported_step_is_what_the_scheduler_made_of_it(pipeline: Any) -> None:
    made: list[Tensor] = []
    own = pipeline.scheduler.step
    pipeline.scheduler.step = lambda *a, **k: (made.append((out := own(*a, **k))[0]), out)[1]
    seen: list[tuple[int, Tensor]] = []
    try:
        denoise(pipeline, "a", TINY_GEN, seed=0, on_step=lambda i, x: seen.append((i, x)))
    finally:
        del pipeline.scheduler.step
    assert [i for i, _ in seen] == list(range(TINY_GEN.steps))
    assert all(mine is theirs for (_, mine), theirs in zip(seen, made, strict=True))


def test_the_pipeline_is_left_as_it_was_also_after_an_error(pipeline: Any) -> None:
    before = pipeline.guider, pipeline.tokenizer_max_length

    def fail(step: int, latents: Tensor) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        denoise(pipeline, "a", TINY_GEN, seed=0, on_step=fail)
    assert (pipeline.guider, pipeline.tokenizer_max_length) == before
    assert "step" not in vars(pipeline.scheduler)


def test_without_guidance_a_step_is_one_call(pipeline: Any) -> None:
    assert len(calls_of(pipeline, TINY_GEN)) == 2 * TINY_GEN.steps
    assert len(calls_of(pipeline, replace(TINY_GEN, guidance=1.0))) == TINY_GEN.steps


def test_the_prompt_is_cut_at_the_length_of_the_settings(pipeline: Any) -> None:
    call = calls_of(pipeline, TINY_GEN, "a red circle moves left on a white background " * 2)[0]
    mask = call["encoder_attention_mask"]
    assert mask.shape == (1, TINY_GEN.max_text_tokens)
    assert bool(mask.all())


def test_quoted_words_are_the_second_encoders(pipeline: Any) -> None:
    with_quotes, without = (calls_of(pipeline, TINY_GEN, t)[0] for t in (QUOTED, "a red circle"))
    assert bool(with_quotes["encoder_attention_mask_2"].any())
    assert not bool(without["encoder_attention_mask_2"].any())


def test_a_recorded_call_has_no_text_that_nothing_sees(pipeline: Any, tmp_path: Path) -> None:
    prompts = [Prompt(id="q", text=QUOTED), Prompt(id="n", text="a red circle")]
    raw = [calls_of(pipeline, TINY_GEN, prompt.text) for prompt in prompts]
    pool = record_pool(
        pipeline, prompts, TINY_GEN, seed=0, folder=tmp_path, progress=lambda d, t: None
    )
    for place, (calls, glyphs) in enumerate(zip(raw, (True, False), strict=True)):
        found = pool.call(Sample(place, 0)).arguments
        lengths = [int(calls[0][name].sum()) for name in _MASKS]
        assert [found[name].shape[1] for name in _MASKS] == lengths
        assert (lengths[1] > 0) == glyphs
        assert found["image_embeds"].shape[1] == 0
        for name in _MASKS:  # the unconditional branch, which comes first, has less
            assert found[name][1].sum() == lengths[_MASKS.index(name)]


_MASKS = ("encoder_attention_mask", "encoder_attention_mask_2")


def test_an_image_is_not_left_out(pipeline: Any) -> None:
    call = calls_of(pipeline, TINY_GEN)[0]
    facts = family_by_name("hunyuanvideo15")
    image = torch.ones_like(call["image_embeds"])
    assert facts.trimmed({**call, "image_embeds": image})["image_embeds"] is image


def test_the_latent_of_a_step_is_that_of_the_sampler_without_its_condition(
    pipeline: Any, tmp_path: Path
) -> None:
    pool = record_pool(
        pipeline, [Prompt(id="a", text="a")], TINY_GEN, seed=0, folder=tmp_path,
        progress=lambda d, t: None,
    )  # fmt: skip
    steps: list[Tensor] = []
    denoise(pipeline, "a", TINY_GEN, seed=1_000_000, on_step=lambda i, x: steps.append(x))
    for step, latent in enumerate(steps, start=1):
        assert torch.equal(pool.latent(Sample(0, step)), latent)
    assert pool.call(Sample(0, 1)).arguments["hidden_states"].shape[1] == 9


@pytest.mark.parametrize("changes", [{"stop": 0.5}, {"use_original_formulation": True}])
def test_a_guider_of_other_branches_is_refused(pipeline: Any, changes: dict[str, Any]) -> None:
    own = pipeline.guider
    pipeline.guider = own.new(**changes)
    try:
        with pytest.raises(HarnessError, match="its branches are not the two of every step"):
            denoise(pipeline, "a", TINY_GEN, seed=0, on_step=lambda i, x: None)
    finally:
        pipeline.guider = own


def test_a_guider_that_is_off_samples_at_guidance_1_only(pipeline: Any) -> None:
    own = pipeline.guider
    pipeline.guider = own.new(enabled=False)
    try:
        assert len(calls_of(pipeline, replace(TINY_GEN, guidance=1.0))) == TINY_GEN.steps
        with pytest.raises(HarnessError, match="or guidance = 1"):
            denoise(pipeline, "a", TINY_GEN, seed=0, on_step=lambda i, x: None)
    finally:
        pipeline.guider = own
