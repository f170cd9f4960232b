"""Each stage of sampling with its own network gives what the whole pipeline gives, bit for bit."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from harness.errors import DivergedError
from harness.models.sample import decode, denoise, denoiser_step, initial_noise, sample_clip
from harness.models.text import Cut, encode_and_count, encode_text, family_of
from harness.models.tiling import UNTILED, tiles, with_tiling
from harness.testing.miniatures import GENS, MINIATURES, TINY_GEN, wan

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

TEXT = "a red circle moves"
OTHER = "a blue square"
STEPS = 2


@pytest.fixture(scope="module", params=sorted(MINIATURES))
def pipeline(request: pytest.FixtureRequest) -> DiffusionPipeline:
    return MINIATURES[request.param]()


def settings(pipeline: DiffusionPipeline, **changes: Any) -> Any:
    return dataclasses.replace(GENS[family_of(pipeline).name], steps=STEPS, **changes)


def from_the_text(pipeline: Any, gen: Any, seed: int) -> tuple[np.ndarray, torch.Tensor]:
    """The pipeline called with words, as its users do."""
    facts = family_of(pipeline)
    generator = torch.Generator().manual_seed(seed)
    noise = initial_noise(pipeline, gen, generator)
    last: list[torch.Tensor] = []

    def keep(step: int, latents: torch.Tensor) -> None:
        last[:] = [latents]

    words = {"prompt": TEXT, "negative_prompt": gen.negative_prompt}
    told = {n: v for n, v in facts.arguments(gen).items() if n != "mask_feature"}
    if hasattr(pipeline, "tokenizer_max_length"):  # where the length is no argument
        pipeline.tokenizer_max_length = gen.max_text_tokens
    with facts.sampling(pipeline, gen, keep) as steering:
        video = pipeline(
            **{**told, **words},
            height=gen.height,
            width=gen.width,
            num_inference_steps=gen.steps,
            generator=generator,
            latents=facts.latents(pipeline, noise),
            output_type="np",
            return_dict=False,
            **steering,
        )[0][0]
    return np.round(np.clip(video, 0, 1) * 255).astype(np.uint8), last[0]


@pytest.mark.parametrize("changes", [{}, {"guidance": 1.0}, {"negative_prompt": OTHER}])
def test_a_clip_from_stored_embeddings_is_the_clip_from_the_text(
    pipeline: DiffusionPipeline, changes: dict[str, Any]
) -> None:
    gen = settings(pipeline, **changes)
    frames, latents = from_the_text(pipeline, gen, seed=3)
    made = sample_clip(pipeline, encode_text(pipeline, TEXT, gen), gen, seed=3)
    assert np.array_equal(made.frames, frames)
    assert torch.equal(made.latents, latents.float())
    assert len(np.unique(made.frames)) > 10


def test_the_negative_prompt_counts(pipeline: DiffusionPipeline) -> None:
    gen = settings(pipeline)
    plain = encode_text(pipeline, TEXT, gen)
    other = encode_text(pipeline, TEXT, dataclasses.replace(gen, negative_prompt=OTHER))
    differing = {n for n in plain if not torch.equal(plain[n], other[n])}
    if family_of(pipeline).guidance == "embedded":
        assert not differing
    else:
        assert "negative_prompt_embeds" in differing
        assert "prompt_embeds" not in differing


def test_no_text_encoder_is_needed_to_denoise_and_no_other_network_to_decode(
    pipeline: DiffusionPipeline,
) -> None:
    gen = settings(pipeline)
    whole = sample_clip(pipeline, TEXT, gen, seed=5)
    conditioning = encode_text(pipeline, TEXT, gen)
    with without(pipeline, "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
        latents = denoise(pipeline, conditioning, gen, seed=5)

        def never(*args: Any, **kwargs: Any) -> None:
            raise AssertionError("the denoiser was called")

        handle = pipeline.transformer.register_forward_pre_hook(never)
        frames = decode(pipeline, latents, conditioning, gen, seed=5)
        handle.remove()
    assert np.array_equal(frames, whole.frames)


class without:
    """A pipeline whose named parts are None."""

    def __init__(self, pipeline: Any, *names: str) -> None:
        self.pipeline, self.names = pipeline, names

    def __enter__(self) -> None:
        found = self.pipeline.__dict__
        self.before = {n: found[n] for n in self.names if n in found}
        found.update(dict.fromkeys(self.before))

    def __exit__(self, *exception: object) -> None:
        self.pipeline.__dict__.update(self.before)


def test_the_denoiser_is_gone_with_the_pipeline_without_the_collector_of_cycles() -> None:
    for name, make in MINIATURES.items():
        pipeline = make()
        gen = dataclasses.replace(GENS[name], steps=STEPS)
        gone = weakref.ref(pipeline.transformer)
        gc.collect()
        gc.disable()
        try:
            made = sample_clip(pipeline, TEXT, gen, seed=0)
            step = denoiser_step(pipeline, gen)
            del pipeline, step
            assert gone() is None, name
            del made
        finally:
            gc.enable()


def test_a_text_that_an_encoder_cuts_is_counted_after_cleaning_and_template() -> None:
    for name in ("cogvideox", "ltx", "wan"):
        pipeline = MINIATURES[name]()
        made, cuts = encode_and_count(pipeline, " ".join(["a"] * 10), TINY_GEN)
        # eight tokens are read, the text has ten and the end
        assert cuts == [Cut(tokenizer="tokenizer", limit=8, tokens=3)]
        assert made["prompt_embeds"].shape[1] == 8
        assert encode_and_count(pipeline, " ".join(["a"] * 7), TINY_GEN)[1] == []


def test_each_encoder_of_two_counts_for_itself() -> None:
    pipeline = MINIATURES["hunyuanvideo"]()
    gen = dataclasses.replace(TINY_GEN, max_text_tokens=80)
    cuts = encode_and_count(pipeline, " ".join(["a"] * 90), gen)[1]
    assert [cut.tokenizer for cut in cuts] == ["tokenizer", "tokenizer_2"]
    assert cuts[1] == Cut(tokenizer="tokenizer_2", limit=77, tokens=90 + 2 - 77)
    # the template's end is cut with the text
    assert cuts[0].tokens >= 10
    assert encode_and_count(pipeline, " ".join(["a"] * 70), gen)[1] == []


def test_captions_are_cleaned_as_the_official_pipelines_do() -> None:
    typed = {
        "latte": "<b>a red</b>  circle",  # beautifulsoup4 takes HTML out
        "wan": "a \uff52\uff45\uff44  circle",  # ftfy mends letters of double width
    }
    for name, dirty in typed.items():
        pipeline, gen = MINIATURES[name](), GENS[name]
        made = [
            encode_text(pipeline, text, gen)["prompt_embeds"] for text in ("a red circle", dirty)
        ]
        assert torch.equal(*made), name


@pytest.mark.parametrize("step", [1, 2])
def test_latents_that_are_not_finite_end_the_sampling_at_their_step(
    pipeline: DiffusionPipeline, step: int
) -> None:
    gen = settings(pipeline)
    facts = family_of(pipeline)
    per_step = 2 if facts.guidance == "calls" else 1
    calls = 0

    def poison(module: Any, args: Any, output: tuple[torch.Tensor, ...]) -> Any:
        nonlocal calls
        calls += 1
        if calls <= per_step * (step - 1):
            return output
        return (output[0].index_fill(0, torch.tensor([0]), float("inf")), *output[1:])

    handle = pipeline.transformer.register_forward_hook(poison)
    try:
        with pytest.raises(DivergedError) as caught:
            denoise(pipeline, TEXT, gen, seed=0)
    finally:
        handle.remove()
    assert caught.value.place == f"step {step} of {STEPS}"
    assert calls == per_step * step


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_decoder_that_overflows_gives_no_frames(
    pipeline: DiffusionPipeline, value: float
) -> None:
    gen = settings(pipeline)
    conditioning = encode_text(pipeline, TEXT, gen)
    latents = denoise(pipeline, conditioning, gen, seed=0)

    def poison(module: Any, args: Any, output: Any) -> Any:
        made = output[0] if isinstance(output, tuple) else output
        made[..., 0, 0] = value
        return output

    handle = pipeline.vae.decoder.register_forward_hook(poison)
    try:
        with pytest.raises(DivergedError, match="decoding"):
            decode(pipeline, latents, conditioning, gen, seed=0)
    finally:
        handle.remove()


def test_half_precision_that_overflows_in_a_block_diverges() -> None:
    pipeline = MINIATURES["cogvideox"]().to(torch.float16)
    gen = dataclasses.replace(TINY_GEN, steps=STEPS, dtype="float16")
    denoise(pipeline, TEXT, gen, seed=0)
    with torch.no_grad():  # activations of a few hundred become more than float16 can hold
        pipeline.transformer.transformer_blocks[0].ff.net[0].proj.weight.mul_(3e3)
        pipeline.transformer.transformer_blocks[0].ff.net[2].weight.mul_(3e3)
    with pytest.raises(DivergedError, match=f"step 1 of {STEPS}") as caught:
        denoise(pipeline, TEXT, gen, seed=0)
    assert 'try dtype = "bfloat16"' in caught.value.hint


def test_tiling_is_by_the_places_that_the_decoder_holds_at_once() -> None:
    official = {
        "cogvideox": (49, 480, 720, True),
        "hunyuanvideo": (129, 720, 1280, True),
        "wan": (81, 720, 1280, False),
        "ltx": (161, 512, 704, False),
        "latte": (16, 512, 512, False),
    }
    for name, (frames, height, width, tiled) in official.items():
        facts = family_of(MINIATURES[name]())
        gen = dataclasses.replace(TINY_GEN, frames=frames, height=height, width=width)
        assert tiles(gen, facts) is tiled, name
        assert with_tiling(gen, facts).vae_tiling is tiled
        assert tiles(dataclasses.replace(gen, vae_tiling=not tiled), facts) is not tiled
    assert UNTILED == 8_388_608


def test_tiling_changes_pixels_and_is_off_again_afterwards() -> None:
    pipeline = wan()
    gen = dataclasses.replace(TINY_GEN, frames=1, height=320, width=320, vae_tiling=False)
    conditioning = encode_text(pipeline, TEXT, gen)
    latents = initial_noise(pipeline, gen, torch.Generator().manual_seed(0))
    plain = decode(pipeline, latents, conditioning, gen, seed=0)
    tiled = decode(
        pipeline, latents, conditioning, dataclasses.replace(gen, vae_tiling=True), seed=0
    )
    assert plain.shape == tiled.shape
    assert not np.array_equal(plain, tiled)
    assert pipeline.vae.use_tiling is False
