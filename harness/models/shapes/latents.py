"""Stage `latents`: encode clips of the training combinations once, so that training reads numbers.

Shards are published one by one; a killed call loses one shard.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from harness.models.shapes.train_text import embed, training_texts
from harness.models.shapes.train_vae import load_vae, to_pixels
from harness.models.shapes.world import (
    object_masks,
    render,
    sample_scene,
    training_combinations,
)

if TYPE_CHECKING:
    from pathlib import Path

SHARD_CLIPS = 262
BATCH = 8
CLIPS = 12 * SHARD_CLIPS


@torch.no_grad()
def encode_clips(folder: Path, *, seed: int, minutes: float | None, count: int | None) -> bool:
    """Encode the clips that are missing; return whether all exist.

    Each shard holds `latents` [clips, 5, 8, 16, 16] half precision, `masks` [clips, 5, 16, 16]
    uint8 (255 where the object covers a latent cell at some time) and `combinations` [clips].
    """
    begun_s = time.monotonic()
    vae, known = load_vae(folder), training_combinations()
    wanted = CLIPS if count is None else count
    for first in range(0, wanted, SHARD_CLIPS):
        last = min(first + SHARD_CLIPS, wanted)
        path = folder / "latents" / f"{first:06d}-{last:06d}.safetensors"
        if path.exists():
            continue
        if minutes is not None and time.monotonic() - begun_s > minutes * 60:
            return False
        rng = np.random.default_rng([seed, 11, first])
        videos, masks, numbers = [], [], []
        for index in range(first, last):
            # A stride that is coprime to the number of combinations visits each once a round.
            number = (index * 331) % len(known)
            scene = sample_scene(known[number], rng)
            videos.append(to_pixels(render(scene)))
            masks.append(latent_mask(torch.from_numpy(object_masks(scene))))
            numbers.append(number)
        latents = []
        for part in torch.split(torch.stack(videos), BATCH):
            with torch.autocast("cpu", torch.bfloat16):
                mean = vae.encode(part).latent_dist.mean.float()
            latents.append((mean * vae.config.scaling_factor).movedim(1, 2).half())
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        tensors = {
            "latents": torch.cat(latents).contiguous(),
            "masks": torch.stack(masks),
            "combinations": torch.tensor(numbers),
        }
        save_file(tensors, partial)
        partial.replace(path)
    return True


def latent_mask(cover: Tensor) -> Tensor:
    """Return where the object is in the latents, [5, 16, 16] uint8, from coverage [17, 64, 64]."""
    pooled = nn.functional.max_pool2d(cover[None], 4)[0]
    groups = [pooled[:1], *torch.split(pooled[1:], 4)]
    return torch.stack([(g.amax(0) * 255).round().to(torch.uint8) for g in groups])


def load_latents(folder: Path) -> dict[str, Tensor]:
    """Load all shards, concatenated along the clips."""
    shards = [load_file(p) for p in sorted((folder / "latents").glob("*.safetensors"))]
    return {key: torch.cat([shard[key] for shard in shards]) for key in shards[0]}


def load_texts(folder: Path) -> Tensor:
    """Embed every way to say every training combination.

    Returns:
        [combinations + 1, ways, tokens, channels]; the last entry is the empty prompt.
    """
    ways = [training_texts(a) for a in training_combinations()]
    ways.append([""] * len(ways[0]))
    flat = embed(folder, [text for texts in ways for text in texts])
    return flat.reshape(len(ways), len(ways[0]), *flat.shape[1:])
