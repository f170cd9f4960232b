"""Random-weight miniatures of the families, as small as their code allows.

One denoiser call takes milliseconds; text encoders, VAE and scheduler are the real classes, so that
a miniature written by ``save_pretrained`` is loaded by the code that loads the model it stands for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from harness.spec import GenSpec
from harness.testing.texts import TEXT_WIDTH, byt5, clip_tokenizer, llama_tokenizer, qwen, t5

if TYPE_CHECKING:
    from collections.abc import Callable

    from diffusers import DiffusionPipeline
    from torch import nn

TINY_GEN = GenSpec(height=32, width=32, frames=9, fps=8, steps=4, guidance=4.0, max_text_tokens=8)
LATTE_GEN = GenSpec(height=32, width=32, frames=4, fps=8, steps=4, guidance=4.0, max_text_tokens=8)
_TEXT = TINY_GEN.max_text_tokens


def cogvideox(seed: int = 0, *, version: str = "1.0") -> DiffusionPipeline:
    """Two blocks of two heads of 16, latents [1, 3, 4, 8, 8].

    Args:
        seed: Of the weights.
        version: ``1.5`` embeds two latent frames as one patch, with rotary positions on a grid that
            is larger than a clip, as the real one's: latents [1, 4, 4, 8, 8].
    """
    from diffusers import (
        AutoencoderKLCogVideoX,
        CogVideoXDDIMScheduler,
        CogVideoXPipeline,
        CogVideoXTransformer3DModel,
    )

    torch.manual_seed(seed)
    text = t5(_TEXT)
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 3,
        up_block_types=("CogVideoXUpBlock3D",) * 3,
        block_out_channels=(8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=4,
        temporal_compression_ratio=4, sample_height=32, sample_width=32, scaling_factor=1.0,
    )  # fmt: skip
    own: dict[str, Any] = {"sample_width": 8, "sample_height": 8, "sample_frames": 9}
    if version == "1.5":
        own = {
            "sample_width": 20, "sample_height": 20, "sample_frames": 17, "patch_size_t": 2,
            "patch_bias": False, "use_rotary_positional_embeddings": True,
        }  # fmt: skip
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4,
        time_embed_dim=8, text_embed_dim=16, num_layers=2, patch_size=2,
        temporal_compression_ratio=4, max_text_seq_length=_TEXT, **own,
    )  # fmt: skip
    _spread_(transformer)
    scheduler = CogVideoXDDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    return _ready(CogVideoXPipeline(**text, vae=vae, transformer=transformer, scheduler=scheduler))


def hunyuanvideo(seed: int = 0) -> DiffusionPipeline:
    """One dual and one single block of two heads of 16, latents [1, 4, 3, 8, 8]."""
    from diffusers import (
        AutoencoderKLHunyuanVideo,
        FlowMatchEulerDiscreteScheduler,
        HunyuanVideoPipeline,
        HunyuanVideoTransformer3DModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel

    torch.manual_seed(seed)
    tokenizer, letters = llama_tokenizer(), clip_tokenizer()
    encoder = LlamaModel(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=TEXT_WIDTH, intermediate_size=32,
            num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=2,
            pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(letters), hidden_size=8, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=1, max_position_embeddings=77, bos_token_id=0, eos_token_id=1,
            pad_token_id=1,
        )
    )  # fmt: skip
    vae = AutoencoderKLHunyuanVideo(
        down_block_types=("HunyuanVideoDownBlock3D",) * 3,
        up_block_types=("HunyuanVideoUpBlock3D",) * 3,
        block_out_channels=(8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=4,
        spatial_compression_ratio=4, temporal_compression_ratio=4, mid_block_add_attention=False,
    )  # fmt: skip
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=1,
        num_single_layers=1, num_refiner_layers=1, mlp_ratio=2.0, text_embed_dim=TEXT_WIDTH,
        pooled_projection_dim=8, rope_axes_dim=(4, 6, 6),
    )  # fmt: skip
    _spread_(transformer)
    return _ready(
        HunyuanVideoPipeline(
            text_encoder=encoder, tokenizer=tokenizer, text_encoder_2=clip, tokenizer_2=letters,
            vae=vae, transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        )
    )  # fmt: skip


def hunyuanvideo15(seed: int = 0) -> DiffusionPipeline:
    """Two blocks of two heads of 16, latents [1, 4, 3, 8, 8]."""
    from diffusers import (
        AutoencoderKLHunyuanVideo15,
        ClassifierFreeGuidance,
        FlowMatchEulerDiscreteScheduler,
        HunyuanVideo15Pipeline,
        HunyuanVideo15Transformer3DModel,
    )

    torch.manual_seed(seed)
    tokenizer, encoder = qwen(crop=108)
    letters, glyphs = byt5(8)
    vae = AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(8, 8, 8), layers_per_block=1,
        spatial_compression_ratio=4, temporal_compression_ratio=4, scaling_factor=1.0,
    )  # fmt: skip
    transformer = HunyuanVideo15Transformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2,
        num_refiner_layers=1, mlp_ratio=2.0, text_embed_dim=TEXT_WIDTH, text_embed_2_dim=8,
        image_embed_dim=8, rope_axes_dim=(4, 6, 6), target_size=32, task_type="t2v",
    )  # fmt: skip
    _spread_(transformer)
    return _ready(
        HunyuanVideo15Pipeline(
            text_encoder=encoder, tokenizer=tokenizer, text_encoder_2=glyphs, tokenizer_2=letters,
            vae=vae, transformer=transformer, guider=ClassifierFreeGuidance(guidance_scale=6.0),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        )
    )  # fmt: skip


def wan(seed: int = 0, *, experts: int = 1, expand_timesteps: bool = False) -> DiffusionPipeline:
    """Two blocks of two heads of 16, latents [1, 4, 3, 8, 8].

    Args:
        seed: Of the weights.
        experts: 2 adds the denoiser of the low-noise steps.
        expand_timesteps: A timestep for each token, as in TI2V.
    """
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline

    torch.manual_seed(seed)
    text = t5(_TEXT, "UMT5")
    vae = AutoencoderKLWan(
        base_dim=8, z_dim=4, dim_mult=[1, 1, 1], num_res_blocks=1, temperal_downsample=[True, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4, scale_factor_spatial=4,
    )  # fmt: skip
    second = {"transformer_2": _wan_transformer(), "boundary_ratio": 0.9} if experts == 2 else {}
    return _ready(
        WanPipeline(
            **text, vae=vae, transformer=_wan_transformer(), expand_timesteps=expand_timesteps,
            scheduler=UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
            ),
            **second,
        )
    )  # fmt: skip


def _wan_transformer() -> nn.Module:
    from diffusers import WanTransformer3DModel

    transformer: nn.Module = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4,
        text_dim=TEXT_WIDTH, freq_dim=16, ffn_dim=64, num_layers=2, rope_max_seq_len=16,
    )  # fmt: skip
    _spread_(transformer)
    return transformer


def ltx(seed: int = 0) -> DiffusionPipeline:
    """Two blocks of two heads of 16, latents [1, 4, 3, 4, 4]."""
    from diffusers import (
        AutoencoderKLLTXVideo,
        FlowMatchEulerDiscreteScheduler,
        LTXPipeline,
        LTXVideoTransformer3DModel,
    )

    torch.manual_seed(seed)
    text = t5(_TEXT)
    vae = AutoencoderKLLTXVideo(
        latent_channels=4, block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        down_block_types=("LTXVideoDownBlock3D",) * 2, layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1), spatio_temporal_scaling=(True, True),
        decoder_spatio_temporal_scaling=(True, True), decoder_inject_noise=(False,) * 3,
        downsample_type=("conv",) * 2, upsample_residual=(False,) * 2, upsample_factor=(1,) * 2,
        patch_size=2,
    )  # fmt: skip
    transformer = LTXVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16,
        cross_attention_dim=32, num_layers=2, caption_channels=TEXT_WIDTH,
    )  # fmt: skip
    _spread_(transformer)
    return _ready(
        LTXPipeline(
            **text, vae=vae, transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        )
    )  # fmt: skip


def latte(seed: int = 0) -> DiffusionPipeline:
    """Two pairs of blocks of two heads of 16, latents [1, 4, 4, 8, 8]."""
    from diffusers import AutoencoderKL, DDIMScheduler, LattePipeline, LatteTransformer3DModel

    torch.manual_seed(seed)
    text = t5(_TEXT)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8), latent_channels=4, norm_num_groups=4, sample_size=32,
    )  # fmt: skip
    transformer = LatteTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=2,
        cross_attention_dim=32, attention_bias=True, sample_size=8, patch_size=2,
        activation_fn="gelu-approximate", norm_type="ada_norm_single", num_embeds_ada_norm=1000,
        norm_elementwise_affine=False, norm_eps=1e-6, caption_channels=TEXT_WIDTH,
        video_length=LATTE_GEN.frames,
    )  # fmt: skip
    _spread_(transformer)
    return _ready(
        LattePipeline(
            **text, vae=vae, transformer=transformer,
            scheduler=DDIMScheduler(clip_sample=False, beta_schedule="linear"),
        )
    )  # fmt: skip


MINIATURES: dict[str, Callable[..., DiffusionPipeline]] = {
    "cogvideox": cogvideox,
    "hunyuanvideo": hunyuanvideo,
    "hunyuanvideo15": hunyuanvideo15,
    "wan": wan,
    "ltx": ltx,
    "latte": latte,
}
GENS = dict.fromkeys(MINIATURES, TINY_GEN) | {"latte": LATTE_GEN}


def _ready(pipeline: Any) -> DiffusionPipeline:
    pipeline.set_progress_bar_config(disable=True)
    for part in pipeline.components.values():
        if hasattr(part, "requires_grad_"):  # also a fresh text encoder drops out at random
            part.eval().requires_grad_(False)
    found: DiffusionPipeline = pipeline
    return found


@torch.no_grad()
def _spread_(transformer: nn.Module) -> None:
    """Fresh modulation and output layers are nearly zero: every clip would look alike."""
    for name, value in transformer.named_parameters():
        if value.ndim == 2:
            value.normal_(0.0, value.shape[1] ** -0.5)
        elif name.endswith("bias"):
            value.normal_(0.0, 0.02)
