"""Stage `denoiser`: train the video transformer on cached latents and frozen text.

v-prediction (Salimans & Ho 2022, appendix D) with a terminal signal-to-noise ratio of zero (Lin et
al. 2024, section 3.1), as CogVideoX is trained. The matrices inside the blocks are trained with
Muon (Jordan et al. 2024), everything else with AdamW.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from harness.models.shapes import FRAMES, MAX_TEXT_TOKENS
from harness.models.shapes.latents import load_latents, load_texts
from harness.models.shapes.loop import Progress, Run, step_generator, train_
from harness.models.shapes.train_text import TEXT_DIM
from harness.models.shapes.train_vae import LATENT_CHANNELS

if TYPE_CHECKING:
    from collections.abc import Mapping

LATENT_SIDE = 16
LAYERS, HEADS, HEAD_DIM, TIME_DIM = 6, 4, 64, 128
BATCH = 16
MUON_LR, MUON_DECAY = 0.02, 0.01
ADAM_LR = 2e-3
TEXT_DROPOUT = 0.1
CAPTION_SHARE = 0.7
OBJECT_WEIGHT = 4.0
NOISY_SHARE, NOISY_FROM = 0.5, 500
CLEAN_SNR = 5.0


def new_transformer() -> CogVideoXTransformer3DModel:
    """Build the untrained transformer; every block begins as the identity (Peebles & Xie 2023)."""
    model = CogVideoXTransformer3DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        time_embed_dim=TIME_DIM,
        text_embed_dim=TEXT_DIM,
        num_layers=LAYERS,
        sample_width=LATENT_SIDE,
        sample_height=LATENT_SIDE,
        sample_frames=FRAMES,
        patch_size=2,
        temporal_compression_ratio=4,
        max_text_seq_length=MAX_TEXT_TOKENS,
        spatial_interpolation_scale=1.0,
        temporal_interpolation_scale=1.0,
    )
    for block in model.transformer_blocks:
        for norm in (block.norm1, block.norm2):
            nn.init.zeros_(norm.linear.weight)
            nn.init.zeros_(norm.linear.bias)
    nn.init.zeros_(model.proj_out.weight)
    nn.init.zeros_(model.proj_out.bias)
    return model


def new_scheduler() -> CogVideoXDDIMScheduler:
    """Build the scheduler that both training and the pipeline use."""
    return CogVideoXDDIMScheduler(
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=1.0,
        timestep_spacing="trailing",
    )


def new_optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Split the parameters: Muon for the matrices of attention and feed-forward, AdamW else."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        inside = ".attn1.to_" in name or ".ff.net." in name
        (matrices if inside and parameter.ndim == 2 else rest).append(parameter)
    muon = torch.optim.Muon(
        [{"params": matrices, "base_lr": MUON_LR}], lr=MUON_LR, weight_decay=MUON_DECAY
    )
    adam = torch.optim.AdamW(
        [{"params": rest, "base_lr": ADAM_LR}], lr=ADAM_LR, betas=(0.9, 0.98), weight_decay=0.0
    )
    return [muon, adam]


class Batches:
    """Random batches of the cached latents with their texts, a pure function of the step."""

    def __init__(self, run: Run, batch: int = BATCH) -> None:
        self.run, self.batch = run, batch
        self.data = load_latents(run.folder)
        self.texts = load_texts(run.folder)
        self.alphas = new_scheduler().alphas_cumprod.float()

    def draw(self, step: int) -> dict[str, Tensor]:
        """Return latents, text, timesteps, noise and loss weights of one step."""
        generator = step_generator(self.run, step)
        rows = torch.randint(len(self.data["latents"]), (self.batch,), generator=generator)
        ways = torch.randint(1, self.texts.shape[1], (self.batch,), generator=generator)
        plain = torch.rand(self.batch, generator=generator) < CAPTION_SHARE
        dropped = torch.rand(self.batch, generator=generator) < TEXT_DROPOUT
        numbers = torch.where(dropped, len(self.texts) - 1, self.data["combinations"][rows])
        steps = len(self.alphas)
        # Each member of the batch takes its own slice of the timesteps: less variance.
        even = (torch.arange(self.batch) + torch.rand(self.batch, generator=generator)) / self.batch
        noisy = torch.rand(self.batch, generator=generator) < NOISY_SHARE
        low = torch.where(noisy, NOISY_FROM, 0)
        timesteps = (low + even * (steps - low)).long().clamp(max=steps - 1)
        latents = self.data["latents"][rows].float()
        mask = self.data["masks"][rows].float()[:, :, None] / 255
        return {
            "latents": latents,
            "text": self.texts[numbers, torch.where(plain, 0, ways)],
            "timesteps": timesteps,
            "noise": torch.randn(latents.shape, generator=generator),
            "weight": 1.0 + (OBJECT_WEIGHT - 1.0) * mask,
        }


class _ExplicitAttention(TorchFunctionMode):
    """Attention as two products and a softmax.

    At 344 tokens in bfloat16 on a CPU this trains about 2.8 times faster than the fused kernel.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key, value = (x.bfloat16() for x in args[:3])
        logits = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        return logits.softmax(-1, dtype=torch.bfloat16) @ value


def denoiser_loss(
    model: nn.Module, batches: Batches, step: int
) -> tuple[Tensor, Mapping[str, Tensor | float]]:
    """Return the weighted v-prediction loss of one batch."""
    batch = batches.draw(step)
    alpha = batches.alphas[batch["timesteps"]].view(-1, 1, 1, 1, 1)
    signal, spread = alpha.sqrt(), (1 - alpha).sqrt()
    noisy = signal * batch["latents"] + spread * batch["noise"]
    velocity = signal * batch["noise"] - spread * batch["latents"]
    with torch.autocast("cpu", torch.bfloat16), _ExplicitAttention():
        predicted = model(
            hidden_states=noisy,
            encoder_hidden_states=batch["text"],
            timestep=batch["timesteps"],
            return_dict=False,
        )[0]
    error = (predicted.float() - velocity).square()
    weight = batch["weight"] / batch["weight"].mean()
    # 1 - alpha is 1 / (SNR + 1): nearly clean latents, whose noise cannot be told, count less.
    trust = (CLEAN_SNR * (1 - alpha)).clamp(max=1.0)
    each = (trust * weight * error).mean(dim=(1, 2, 3, 4))
    late = batch["timesteps"] >= NOISY_FROM
    plain = error.detach().mean(dim=(1, 2, 3, 4))
    numbers = {"mse_noisy": plain[late].mean(), "mse_clean": plain[~late].mean()}
    return each.mean(), numbers


def train_denoiser(run: Run) -> Progress:
    """Train the transformer; its average is read from the checkpoint by stage `export`."""
    torch.manual_seed(run.seed)
    model = new_transformer()
    batches = Batches(run)
    _, progress = train_(
        run, model, new_optimizers(model), lambda step: denoiser_loss(model, batches, step)
    )
    return progress
