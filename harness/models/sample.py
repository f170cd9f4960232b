"""Sampling one clip the same way everywhere: same noise, same settings, frames before any codec.

Three steps that need three networks: texts are encoded (``harness.models.text``), latents are
denoised, frames are decoded. Each works on a pipeline that holds no other network than its own.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from harness.errors import DivergedError
from harness.models.scheduler import set_flow_shift_
from harness.models.text import Conditioning, encode_text, family_of
from harness.models.tiling import tiles

if TYPE_CHECKING:
    from collections.abc import Iterator

    from diffusers import DiffusionPipeline

    from harness.spec import GenSpec

Hook = Callable[[int, torch.Tensor], None]
_REGISTRY = "_diffusers_hook"  # attribute in which diffusers keeps a module's registry of hooks


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


def denoise(
    pipeline: DiffusionPipeline,
    prompt: str | Conditioning,
    gen: GenSpec,
    *,
    seed: int,
    on_step: Hook | None = None,
) -> torch.Tensor:
    """Run the sampler without decoding.

    Args:
        pipeline: A pipeline with its denoiser; with its text encoders, too, for a text.
        prompt: The text, or what ``encode_text`` made of it.
        gen: Settings.
        seed: Seed of the initial noise.
        on_step: Called with the step index and the latents *after* that step.

    Returns:
        The final latents, as the pipeline holds them.

    Raises:
        DivergedError: Latents are not finite after a step; the steps after it are not computed.
    """

    def look(step: int, latents: torch.Tensor) -> None:
        if not bool(torch.isfinite(latents).all()):
            raise DivergedError(f"step {step + 1} of {gen.steps}", gen.dtype)
        if on_step is not None:
            on_step(step, latents)

    set_flow_shift_(pipeline, gen.flow_shift)
    # the same stream goes on where a scheduler draws more noise
    generator = torch.Generator().manual_seed(seed)
    noise = initial_noise(pipeline, gen, generator).to(device_of(pipeline))
    latents = family_of(pipeline).latents(pipeline, noise)
    conditioning = encode_text(pipeline, prompt, gen) if isinstance(prompt, str) else prompt
    with _no_cycle(pipeline):
        found: torch.Tensor = _call(pipeline, conditioning, gen, latents, generator, look)
    return found


def decode(
    pipeline: DiffusionPipeline,
    latents: torch.Tensor,
    conditioning: Conditioning,
    gen: GenSpec,
    *,
    seed: int,
) -> np.ndarray:
    """Decode final latents, by the pipeline's own code behind its last step.

    Args:
        pipeline: A pipeline with its decoder.
        latents: What ``denoise`` returned.
        conditioning: Of the clip; pipelines check it, and take its dtype.
        gen: Settings; says whether the decoder tiles.
        seed: Seed of the clip's noise, for decoders that draw some.

    Returns:
        uint8 ``[frames, height, width, 3]``.

    Raises:
        DivergedError: The decoder's output is not finite.
    """
    stopped = copy.copy(pipeline)
    # past the pipeline's own __setattr__, which looks its components up in libraries
    stopped.__dict__["scheduler"] = _NoSteps(pipeline.scheduler.config)
    generator = torch.Generator().manual_seed(seed)
    initial_noise(pipeline, gen, generator)  # a decoder's noise comes after it in the stream
    tiled = tiles(gen, family_of(pipeline))
    with (
        _no_cycle(pipeline),
        _tiling(pipeline.vae, tiled),
        _watched(pipeline.vae, gen.dtype),
    ):
        latents = latents.to(device_of(pipeline))
        video = _call(stopped, conditioning, gen, latents, generator, _ignore, "np")[0]
    return np.round(np.clip(video, 0, 1) * 255).astype(np.uint8)


def sample_clip(
    pipeline: DiffusionPipeline, prompt: str | Conditioning, gen: GenSpec, *, seed: int
) -> SampledClip:
    """Generate one clip with a whole pipeline."""
    started = time.perf_counter()
    conditioning = encode_text(pipeline, prompt, gen) if isinstance(prompt, str) else prompt
    latents = denoise(pipeline, conditioning, gen, seed=seed)
    frames = decode(pipeline, latents, conditioning, gen, seed=seed)
    seconds = time.perf_counter() - started
    return SampledClip(frames=frames, latents=latents.cpu().float(), seconds=seconds)


def device_of(pipeline: DiffusionPipeline) -> torch.device:
    """Where a pipeline computes, be its networks moved there as they are needed."""
    found: torch.device = pipeline._execution_device
    return found


def denoiser_calls(
    pipeline: DiffusionPipeline, gen: GenSpec, prompt: str | Conditioning = ""
) -> list[dict[str, Any]]:
    """Arguments of the denoiser's calls in the first step, with all guidance branches."""
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
        denoise(pipeline, prompt, gen, seed=0)
    except _Recorded:
        pass
    finally:
        handle.remove()
    return calls


def denoiser_step(
    pipeline: DiffusionPipeline, gen: GenSpec, prompt: str | Conditioning = ""
) -> Callable[[], None]:
    """Make a closed call of one denoising step at the model's shape, with all guidance branches."""
    calls = denoiser_calls(pipeline, gen, prompt)

    def step() -> None:
        with torch.no_grad():
            for arguments in calls:
                pipeline.transformer(**arguments)
        device = device_of(pipeline)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step


def _call(
    pipeline: Any,
    conditioning: Conditioning,
    gen: GenSpec,
    latents: torch.Tensor,
    generator: torch.Generator,
    on_step: Hook,
    output: str = "latent",
) -> Any:
    device, facts = device_of(pipeline), family_of(pipeline)
    with torch.no_grad(), facts.sampling(pipeline, gen, on_step) as steering:
        return pipeline(
            height=gen.height,
            width=gen.width,
            num_inference_steps=gen.steps,
            generator=generator,
            latents=latents,
            output_type=output,
            return_dict=False,
            **{name: value.to(device) for name, value in conditioning.items()},
            **steering,
            **facts.arguments(gen),
        )[0]


def _ignore(step: int, latents: torch.Tensor) -> None:
    """Leave a step unsaid."""


class _NoSteps:
    """In the place of a scheduler: the pipeline's loop has no steps, and latents stay as given."""

    order = 1
    init_noise_sigma = 1.0

    def __init__(self, config: Any) -> None:
        self.config = config
        self.timesteps = torch.empty(0)
        self.sigmas = torch.empty(0)

    def set_timesteps(
        self, num_inference_steps: int = 0, *, timesteps: Any = None, sigmas: Any = None, **_: Any
    ) -> None:
        """Leave the schedule empty."""

    def set_begin_index(self, begin_index: int = 0) -> None:
        """There is none."""

    def step(self) -> None:
        """Only its signature is read."""


@contextmanager
def _no_cycle(pipeline: DiffusionPipeline) -> Iterator[None]:
    """Take away the registries of hooks that a call of the pipeline leaves on its networks.

    They refer to the networks, which would then live until the collector of cycles runs. One that
    was there before, or that holds hooks, stays.
    """
    before = {id(registry) for _, registry in _registries(pipeline)}
    try:
        yield
    finally:
        for module, registry in list(_registries(pipeline)):
            if id(registry) not in before and not registry.hooks:
                delattr(module, _REGISTRY)


def _registries(pipeline: DiffusionPipeline) -> Iterator[tuple[nn.Module, Any]]:
    # experts are one module under two names
    networks = {part: 0 for part in pipeline.components.values() if isinstance(part, nn.Module)}
    for module in (module for network in networks for module in network.modules()):
        if (registry := vars(module).get(_REGISTRY)) is not None:
            yield module, registry


@contextmanager
def _tiling(vae: Any, on: bool) -> Iterator[None]:
    """Decode tile by tile, and the frames of an image decoder one by one; as before afterwards."""
    before = {n: getattr(vae, n) for n in ("use_tiling", "use_slicing") if hasattr(vae, n)}
    for name in before:
        setattr(vae, name, on)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(vae, name, value)


@contextmanager
def _watched(vae: Any, dtype: str) -> Iterator[None]:
    """Raise where the decoder gives values that are not finite, before they are clipped to pixels.

    Raises:
        DivergedError: It did.
    """

    def look(_: nn.Module, args: Any, output: Any) -> None:
        del args
        tensor = output[0] if isinstance(output, tuple) else output
        if not bool(torch.isfinite(tensor).all()):
            raise DivergedError("decoding", dtype)

    handle = vae.decoder.register_forward_hook(look)
    try:
        yield
    finally:
        handle.remove()
