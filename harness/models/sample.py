"""Sampling one clip the same way everywhere: same noise, same settings, frames before any codec."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from harness.models.families import family_by_name, family_name_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from harness.models.families.base import Family
    from harness.spec import GenSpec

Hook = Callable[[int, torch.Tensor], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledClip:
    """A clip as generated.

    Attributes:
        frames: uint8 ``[frames, height, width, 3]``.
        latents: Final latents as the scheduler left them, on the CPU.
        seconds: Wall time of text encoding, denoising and decoding.
    """

    frames: np.ndarray
    latents: torch.Tensor
    seconds: float


def initial_noise(
    pipeline: DiffusionPipeline, gen: GenSpec, generator: torch.Generator
) -> torch.Tensor:
    """Draw the initial latents from a CPU generator: every device starts from the same noise.

    Returns:
        float32 on the CPU, in the family's shape of a latent.
    """
    shape = family_of(pipeline).noise_shape(pipeline, gen)
    return torch.randn(shape, generator=generator, dtype=torch.float32)


def family_of(pipeline: DiffusionPipeline) -> Family:
    """Facts about a pipeline's denoiser."""
    return family_by_name(family_name_of(type(pipeline.transformer).__name__))


def _run(
    pipeline: DiffusionPipeline, text: str, gen: GenSpec, seed: int, on_step: Hook, output: str
) -> Any:
    def report(_: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        del timestep
        on_step(step, values["latents"])
        return values

    facts = family_of(pipeline)
    # the same stream goes on where a scheduler or a decoder draws more noise
    generator = torch.Generator().manual_seed(seed)
    noise = initial_noise(pipeline, gen, generator).to(pipeline.device)
    with torch.no_grad():
        return pipeline(
            prompt=text,
            height=gen.height,
            width=gen.width,
            num_inference_steps=gen.steps,
            guidance_scale=gen.guidance,
            generator=generator,
            latents=facts.latents(pipeline, noise),
            output_type=output,
            callback_on_step_end=report,
            return_dict=False,
            **facts.arguments(gen),
        )[0]


def denoise(
    pipeline: DiffusionPipeline, text: str, gen: GenSpec, *, seed: int, on_step: Hook
) -> None:
    """Run the sampler without decoding.

    Args:
        pipeline: A loaded pipeline.
        text: The prompt.
        gen: Settings.
        seed: Seed of the initial noise.
        on_step: Called with the step index and the latents *after* that step.
    """
    _run(pipeline, text, gen, seed, on_step, "latent")


def sample_clip(pipeline: DiffusionPipeline, text: str, gen: GenSpec, *, seed: int) -> SampledClip:
    """Generate one clip."""
    last: list[torch.Tensor] = []

    def keep(step: int, latents: torch.Tensor) -> None:
        del step
        last[:] = [latents]

    started = time.perf_counter()
    video = _run(pipeline, text, gen, seed, keep, "np")[0]
    seconds = time.perf_counter() - started
    frames = np.round(np.clip(video, 0, 1) * 255).astype(np.uint8)
    return SampledClip(frames=frames, latents=last[0].cpu().float(), seconds=seconds)


def denoiser_step(pipeline: DiffusionPipeline, gen: GenSpec) -> Callable[[], None]:
    """Make a closed call of one denoising step at the model's shape, with all guidance branches."""
    calls: list[dict[str, Any]] = []
    wanted = 2 if family_of(pipeline).guidance == "calls" and gen.guidance > 1 else 1

    class _Recorded(Exception):
        pass

    def grab(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if args:
            raise TypeError("the pipeline passes positional arguments to its denoiser")
        calls.append(kwargs)
        if len(calls) == wanted:
            raise _Recorded

    handle = pipeline.transformer.register_forward_pre_hook(grab, with_kwargs=True)
    try:
        denoise(pipeline, "", gen, seed=0, on_step=lambda step, latents: None)
    except _Recorded:
        pass
    finally:
        handle.remove()

    def step() -> None:
        with torch.no_grad():
            for arguments in calls:
                pipeline.transformer(**arguments)
        if pipeline.device.type == "cuda":
            torch.cuda.synchronize(pipeline.device)

    return step
