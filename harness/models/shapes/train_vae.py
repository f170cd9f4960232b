"""Stage `vae`: train the causal 3D autoencoder on clips of the world.

The object covers a tenth of a frame: with an even loss its colour is washed out, so its pixels
count `OBJECT_WEIGHT` times. Noise is added to the latents while the decoder trains, so that it
forgives the small errors of a denoiser.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor, nn

from harness.errors import HarnessError
from harness.models.shapes import FRAMES, HEIGHT, WIDTH, checkpoint
from harness.models.shapes.loop import Progress, Run, step_generator, step_rng, train_
from harness.models.shapes.muon import KernelMuon
from harness.models.shapes.world import (
    object_masks,
    render,
    sample_scene,
    training_combinations,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

LATENT_CHANNELS = 8
CHANNELS = (16, 32, 64)
# Crops teach the outlines and their motion; later many single frames between them teach the
# colours, of which a batch of four crops shows too few.
CROPS, CROP_FRAMES, IMAGES, CLIPS = 4, 9, 28, 2
CLIP_EVERY, IMAGE_EVERY, IMAGES_FROM_STEP = 4, 2, 567
EARLY_NOISE, LATE_NOISE, LAST_NOISE = 0.08, 0.04, 0.02
OBJECT_WEIGHT, SQUARE_SHARE = 6.0, 2.0
# What is left to the decoder are the edges, a few pixels with large errors: squares count more.
DECODER_OBJECT_WEIGHT, DECODER_SQUARE_SHARE = 2.0, 12.0
KL_WEIGHT = 2e-5
BASE_LR, DECODER_LR = 3e-3, 1.5e-3
MUON_LR, MUON_OUTPUTS = 0.004, 8
SQUARE_UNIT = 12.0


def new_vae() -> AutoencoderKLCogVideoX:
    """Build the untrained autoencoder: 4x smaller in space and time, 8 latent channels."""
    return AutoencoderKLCogVideoX(
        block_out_channels=CHANNELS,
        down_block_types=("CogVideoXDownBlock3D",) * len(CHANNELS),
        up_block_types=("CogVideoXUpBlock3D",) * len(CHANNELS),
        latent_channels=LATENT_CHANNELS,
        layers_per_block=1,
        norm_num_groups=8,
        temporal_compression_ratio=4,
        sample_height=HEIGHT,
        sample_width=WIDTH,
        scaling_factor=1.0,
    )


def to_pixels(frames: np.ndarray) -> Tensor:
    """Turn uint8 frames [..., frames, height, width, 3] into [-1, 1] channels-first video."""
    video = torch.from_numpy(frames).float() / 127.5 - 1.0
    return video.movedim(-1, -4).contiguous()


def random_clips(rng: np.random.Generator, count: int, frames: int) -> tuple[Tensor, Tensor]:
    """Render clips of training combinations, cropped in time.

    Returns:
        Pixels [count, 3, frames, height, width] in [-1, 1] and object coverage [count, 1, ...].
    """
    videos, masks = [], []
    known = training_combinations()
    for index in rng.integers(len(known), size=count):
        scene = sample_scene(known[index], rng)
        start = int(rng.integers(FRAMES - frames + 1))
        videos.append(to_pixels(render(scene)[start : start + frames]))
        masks.append(torch.from_numpy(object_masks(scene)[None, start : start + frames]))
    return torch.stack(videos), torch.stack(masks)


def batch_size(step: int, late: bool) -> tuple[int, int]:
    """Return how many clips a step trains on and how many frames of each."""
    if late and step % IMAGE_EVERY == 1:
        return IMAGES, 1
    if step % CLIP_EVERY == 0:
        return CLIPS, FRAMES
    return CROPS, CROP_FRAMES


def vae_loss(
    vae: AutoencoderKLCogVideoX, run: Run, step: int
) -> tuple[Tensor, Mapping[str, Tensor | float]]:
    """Return the loss of the whole autoencoder on one random batch."""
    rng, generator = step_rng(run, step), step_generator(run, step)
    late = step >= IMAGES_FROM_STEP
    count, frames = batch_size(step, late)
    jitter = LATE_NOISE if late else EARLY_NOISE
    video, mask = random_clips(rng, count, frames)
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(video).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        noise = torch.randn(mean.shape, generator=generator)
        spread = torch.sqrt(torch.exp(logvar) + (jitter * mean.detach().std()) ** 2)
        decoded = vae.decode(mean + spread * noise).sample.float()
    loss, numbers = reconstruction_loss(decoded, video, mask, OBJECT_WEIGHT, SQUARE_SHARE)
    kl = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()
    return loss + KL_WEIGHT * kl, numbers | {"kl": kl.detach(), "z_std": mean.detach().std()}


def reconstruction_loss(
    decoded: Tensor, video: Tensor, mask: Tensor, object_weight: float, square_share: float
) -> tuple[Tensor, dict[str, Tensor | float]]:
    """Return L1 and a share of MSE, the object's pixels weighted, and the batch's plain PSNR."""
    error = decoded - video
    weight = 1.0 + (object_weight - 1.0) * mask
    weight = weight / weight.mean()
    loss = (weight * (error.abs() + square_share * error.square())).mean()
    return loss, {"psnr_db": 10 * torch.log10(4.0 / error.detach().square().mean())}


def decoder_loss(
    vae: AutoencoderKLCogVideoX, run: Run, step: int, *, images: bool, plain: bool = False
) -> tuple[Tensor, Mapping[str, Tensor | float]]:
    """Return the decoder's loss on one random batch; the encoder is frozen.

    `plain` counts every pixel's square alike: what PSNR measures.
    """
    rng, generator = step_rng(run, step), step_generator(run, step)
    count, frames = batch_size(step, images)
    video, mask = random_clips(rng, count, frames)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            mean = vae.encode(video).latent_dist.mean.float()
        noise = torch.randn(mean.shape, generator=generator)
        jitter = LATE_NOISE if images else LAST_NOISE
        decoded = vae.decode(mean + jitter * noise).sample.float()
    if plain:
        error = (decoded - video).square().mean()
        return SQUARE_UNIT * error, {"psnr_db": 10 * torch.log10(4.0 / error.detach())}
    return reconstruction_loss(decoded, video, mask, DECODER_OBJECT_WEIGHT, DECODER_SQUARE_SHARE)


def _optimizer(module: nn.Module, lr: float) -> torch.optim.Optimizer:
    groups = [{"params": list(module.parameters()), "base_lr": lr}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), weight_decay=1e-4)


def train_vae(run: Run) -> Progress:
    """Train the autoencoder and save its average as `vae/` in diffusers format when finished."""
    torch.manual_seed(run.seed)
    vae = new_vae()
    average, progress = train_(
        run, vae, [_optimizer(vae, BASE_LR)], lambda step: vae_loss(vae, run, step)
    )
    if progress.finished:
        vae.load_state_dict(average.shadow)
        normalise_latents_(vae, run.seed)
        vae.save_pretrained(run.folder / "vae")
    return progress


def _kernel_optimizers(module: nn.Module) -> list[torch.optim.Optimizer]:
    """Split the parameters: Muon for the kernels of eight or more outputs, AdamW else."""
    kernels = [p for p in module.parameters() if p.ndim == 5 and len(p) >= MUON_OUTPUTS]
    known = {id(p) for p in kernels}
    rest = [p for p in module.parameters() if id(p) not in known]
    adam = [{"params": rest, "base_lr": DECODER_LR}]
    return [
        KernelMuon([{"params": kernels, "base_lr": MUON_LR}], lr=MUON_LR),
        torch.optim.AdamW(adam, lr=DECODER_LR, betas=(0.9, 0.99), weight_decay=1e-4),
    ]


def train_decoder(
    run: Run, after: str | None = None, *, muon: bool = False, plain: bool = False
) -> Progress:
    """Train the decoder further while the encoder, and so every latent, stays as it is.

    The denoiser needs only the encoder, so both can be trained at the same time. A later pass,
    `after` the stage of that name, begins with its average and sees no single frames.
    """
    torch.manual_seed(run.seed)
    vae = load_vae(run.folder)
    if after is not None:
        vae.decoder.load_state_dict(finished_average(run.folder, after))
    vae.decoder.requires_grad_(True)
    _, progress = train_(
        run,
        vae.decoder,
        _kernel_optimizers(vae.decoder) if muon else [_optimizer(vae.decoder, DECODER_LR)],
        lambda step: decoder_loss(vae, run, step, images=after is None, plain=plain),
    )
    return progress


def finished_average(folder: Path, stage: str) -> dict[str, Tensor]:
    """Return the averaged weights of a finished stage.

    Raises:
        HarnessError: the stage is not finished.
    """
    state = checkpoint.read(folder / f"{stage}.pt")
    if state is None or not state["finished"]:
        raise HarnessError(f"stage {stage} is not finished in {folder}", f"run --stage {stage}")
    average: dict[str, Tensor] = state["average"]
    return average


@torch.no_grad()
def normalise_latents_(vae: AutoencoderKLCogVideoX, seed: int, clips: int = 64) -> None:
    """Give every latent channel the standard deviation 1, in place, without changing the function.

    The encoder's last convolution is divided by the channel's deviation; everything in the decoder
    that reads the latents is linear (its first convolution and the spatial norms' 1x1x1
    convolutions), so it is multiplied by it.
    """
    video, _ = random_clips(np.random.default_rng([seed, 7]), clips, FRAMES)
    vae.eval()
    means = torch.cat([vae.encode(v[None]).latent_dist.mean for v in video])
    deviation = means.std(dim=(0, 2, 3, 4))
    last = vae.encoder.conv_out.conv
    last.weight[:LATENT_CHANNELS] /= deviation[:, None, None, None, None]
    last.bias[:LATENT_CHANNELS] /= deviation
    last.bias[LATENT_CHANNELS:] -= 2 * torch.log(deviation)
    vae.decoder.conv_in.conv.weight.mul_(deviation[None, :, None, None, None])
    for name, module in vae.decoder.named_modules():
        if name.endswith(("conv_y", "conv_b")):
            module.conv.weight.mul_(deviation[None, :, None, None, None])


def load_vae(folder: Path) -> AutoencoderKLCogVideoX:
    """Load the trained autoencoder for inference."""
    vae = AutoencoderKLCogVideoX.from_pretrained(folder / "vae")
    vae.eval().requires_grad_(False)
    return vae
