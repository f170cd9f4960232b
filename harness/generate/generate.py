"""Generate: one clip, published the moment it exists."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from harness.spec import GenSpec
    from harness.store.store import Store
    from harness.task import ClipTask

MP4_FILE = "clip.mp4"
LOSSLESS_FILE = "frames.mkv"
LATENTS_FILE = "latents.safetensors"
FACTS_FILE = "clip.json"
ENCODER = "encoder"
"""In a clip's facts: codec and settings of the file that VBench reads."""


def generate(
    pipeline: DiffusionPipeline, wanted: ClipTask, gen: GenSpec, store: Store, *, label: str
) -> float:
    """Sample one clip and publish it.

    Returns:
        Seconds of sampling.
    """
    from safetensors.torch import save_file

    from harness.generate.video import MP4_CODEC, MP4_OPTIONS, MP4_PIXELS, write_lossless, write_mp4
    from harness.models.sample import sample
    from harness.quant.layers.policy import policy_of

    with store.build("clip", wanted.clip.key, wanted.clip.inputs, {"label": label}) as folder:
        policy = policy_of(pipeline.transformer)
        if policy is not None:
            policy.begin()
        made = sample(pipeline, wanted.prompt.text, gen, seed=wanted.noise_seed)
        write_mp4(folder / MP4_FILE, made.frames, fps=gen.fps)
        write_lossless(folder / LOSSLESS_FILE, made.frames, fps=gen.fps)
        save_file({"latents": made.latents.contiguous()}, folder / LATENTS_FILE)
        facts: dict[str, Any] = {
            "prompt": wanted.prompt.id,
            "text": wanted.prompt.text,
            "seed": wanted.seed,
            "noise_seed": wanted.noise_seed,
            "seconds": made.seconds,
            ENCODER: {"codec": MP4_CODEC, "crf": MP4_OPTIONS["crf"], "pixels": MP4_PIXELS},
        }
        if policy is not None:
            facts["steps_by_choice"] = list(policy.trace)
        (folder / FACTS_FILE).write_text(json.dumps(facts, sort_keys=True) + "\n", encoding="utf-8")
    return made.seconds
