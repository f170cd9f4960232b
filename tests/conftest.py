"""Fixtures that several test folders share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

WORDS = (
    *("a", "on", "the", "to", "background", "red", "green", "blue", "yellow", "circle", "square"),
    *("triangle", "cross", "white", "black", "striped", "checkered", "moves", "moving", "left"),
    *("right", "up", "down", "grows", "shrinks", "rotates", "stands", "still"),
)
TINY_TEXT_TOKENS = 8


def build_tiny_pipeline(folder: Path, *, seed: int = 0) -> Path:
    """Write a random-weight miniature `CogVideoXPipeline` in diffusers format.

    Two blocks of two heads of 16, clips of 9 frames of 32x32, latents [1, 3, 4, 8, 8].
    """
    import torch
    from diffusers import (
        AutoencoderKLCogVideoX,
        CogVideoXDDIMScheduler,
        CogVideoXPipeline,
        CogVideoXTransformer3DModel,
    )
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    torch.manual_seed(seed)
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocab += [(f"▁{word}", -1.0) for word in sorted(set(WORDS))]
    tokenizer = T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=TINY_TEXT_TOKENS)
    encoder = T5EncoderModel(
        T5Config(
            vocab_size=len(vocab), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
            feed_forward_proj="gated-gelu", pad_token_id=0, eos_token_id=1,
        )
    )  # fmt: skip
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 3,
        up_block_types=("CogVideoXUpBlock3D",) * 3,
        block_out_channels=(8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=4,
        temporal_compression_ratio=4, sample_height=32, sample_width=32, scaling_factor=1.0,
    )  # fmt: skip
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4,
        time_embed_dim=8, text_embed_dim=16, num_layers=2, sample_width=8, sample_height=8,
        sample_frames=9, patch_size=2, temporal_compression_ratio=4,
        max_text_seq_length=TINY_TEXT_TOKENS,
    )  # fmt: skip
    with torch.no_grad():
        # Fresh modulation and output layers are nearly zero: every clip would look alike.
        for name, value in transformer.named_parameters():
            if value.ndim == 2:
                value.normal_(0.0, value.shape[1] ** -0.5)
            elif name.endswith("bias"):
                value.normal_(0.0, 0.02)
    scheduler = CogVideoXDDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    CogVideoXPipeline(
        tokenizer=tokenizer, text_encoder=encoder, vae=vae, transformer=transformer,
        scheduler=scheduler,
    ).save_pretrained(folder, safe_serialization=True)  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def tiny_pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A miniature CogVideoX pipeline with random weights, made once a session."""
    return build_tiny_pipeline(tmp_path_factory.mktemp("models") / "tiny")
