"""Model folders as planning sees them: real configs and headers, weights of a few bytes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

UNIPC = {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True, "flow_shift": 3.0}
EULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 7.0}
DYNAMIC = {**EULER, "shift": 1.0, "use_dynamic_shifting": True}
DDIM = {"_class_name": "CogVideoXDDIMScheduler", "snr_shift_scale": 3.0}
LATTE_DDIM = {"_class_name": "DDIMScheduler"}

WIDE_VAE = {"block_out_channels": [128, 256, 256, 512], "latent_channels": 16}
COG_VAE = {**WIDE_VAE, "temporal_compression_ratio": 4}
COG = {
    "in_channels": 16, "num_layers": 30, "num_attention_heads": 30, "attention_head_dim": 64,
    "sample_height": 60, "sample_width": 90, "sample_frames": 49, "max_text_seq_length": 226,
    "patch_size": 2, "use_rotary_positional_embeddings": False,
}  # fmt: skip
COG_5B = {
    **COG, "num_layers": 42, "num_attention_heads": 48, "use_rotary_positional_embeddings": True
}  # fmt: skip
COG_15 = {
    **COG_5B, "patch_size_t": 2, "sample_height": 300, "sample_width": 300, "sample_frames": 81
}  # fmt: skip
HUNYUAN = {
    "in_channels": 16, "num_layers": 20, "num_single_layers": 40, "num_attention_heads": 24,
    "patch_size": 2, "patch_size_t": 1, "guidance_embeds": True,
}  # fmt: skip
HUNYUAN15 = {
    "in_channels": 65, "out_channels": 32, "num_layers": 54, "num_attention_heads": 16,
    "attention_head_dim": 128, "mlp_ratio": 4.0, "patch_size": 1,
    "patch_size_t": 1, "target_size": 640,
}  # fmt: skip
WAN_13 = {
    "in_channels": 16, "num_layers": 30, "num_attention_heads": 12, "attention_head_dim": 128,
    "ffn_dim": 8960, "patch_size": [1, 2, 2],
}  # fmt: skip
WAN_14 = {**WAN_13, "num_layers": 40, "num_attention_heads": 40, "ffn_dim": 13824}
WAN_5 = {**WAN_13, "in_channels": 48, "num_attention_heads": 24, "ffn_dim": 14336}
LTX = {
    "in_channels": 128, "num_layers": 28, "num_attention_heads": 32, "attention_head_dim": 64,
    "patch_size": 1, "patch_size_t": 1,
}  # fmt: skip
LTX_VAE = {
    "latent_channels": 128, "patch_size": 4, "patch_size_t": 1,
    "spatio_temporal_scaling": [True, True, True, False],
}  # fmt: skip
LATTE = {
    "in_channels": 4, "num_layers": 28, "num_attention_heads": 16, "attention_head_dim": 72,
    "patch_size": 2, "sample_size": 64, "video_length": 16,
}  # fmt: skip

KNOWN: dict[str, dict[str, Any]] = {
    "cogvideox-2b": {"kind": "CogVideoX", "transformer": COG, "stored": "F16"},
    "cogvideox-5b": {"kind": "CogVideoX", "transformer": COG_5B, "stored": "BF16"},
    "cogvideox1.5-5b": {"kind": "CogVideoX", "transformer": COG_15, "stored": "BF16"},
    "hunyuanvideo": {"kind": "HunyuanVideo", "transformer": HUNYUAN, "stored": "BF16"},
    "hunyuanvideo-1.5-480p": {
        "kind": "HunyuanVideo15", "transformer": HUNYUAN15, "stored": "BF16"
    },
    "hunyuanvideo-1.5-720p": {
        "kind": "HunyuanVideo15", "transformer": {**HUNYUAN15, "target_size": 960}, "stored": "BF16"
    },
    "wan2.1-1.3b": {"kind": "Wan", "transformer": WAN_13, "stored": "F32"},
    "wan2.1-14b": {"kind": "Wan", "transformer": WAN_14, "stored": "F32"},
    "wan2.2-ti2v-5b": {
        "kind": "Wan", "transformer": WAN_5, "stored": "F32",
        "vae": {"z_dim": 48, "scale_factor_spatial": 16, "scale_factor_temporal": 4},
        "scheduler": {**UNIPC, "flow_shift": 5.0},
    },
    "wan2.2-a14b": {
        "kind": "Wan", "transformer": WAN_14, "stored": "F32", "experts": True,
        "scheduler": {**UNIPC, "flow_shift": 3.0},
    },
    "ltx-video": {"kind": "LTX", "transformer": LTX, "stored": "F32"},
    "latte": {"kind": "Latte", "transformer": LATTE, "stored": "F32"},
}  # fmt: skip

_TRANSFORMERS = {"LTX": "LTXVideoTransformer3DModel", "Latte": "LatteTransformer3DModel"}
_VAES: dict[str, tuple[str, dict[str, Any]]] = {
    "CogVideoX": ("AutoencoderKLCogVideoX", COG_VAE),
    "HunyuanVideo": (
        "AutoencoderKLHunyuanVideo",
        {"latent_channels": 16, "spatial_compression_ratio": 8, "temporal_compression_ratio": 4},
    ),
    "HunyuanVideo15": (
        "AutoencoderKLHunyuanVideo15",
        {"latent_channels": 32, "spatial_compression_ratio": 16, "temporal_compression_ratio": 4},
    ),
    "Wan": ("AutoencoderKLWan", {"z_dim": 16}),
    "LTX": ("AutoencoderKLLTXVideo", LTX_VAE),
    "Latte": ("AutoencoderKL", {**WIDE_VAE, "latent_channels": 4}),
}
_SCHEDULERS = {
    "CogVideoX": DDIM,
    "HunyuanVideo": EULER,
    "HunyuanVideo15": EULER,
    "Wan": UNIPC,
    "LTX": DYNAMIC,
}


def write_known(folder: Path, name: str, *, stored: str | None = None) -> Path:
    """A folder with the configs of a known model.

    Args:
        folder: To make.
        name: One of ``KNOWN``.
        stored: Type of the weights, ``BF16``; None for the one that the model is published in.
    """
    about = KNOWN[name]
    kind, kept = about["kind"], stored or about["stored"]
    vae, vae_config = _VAES[kind]
    scheduler = about.get("scheduler", _SCHEDULERS.get(kind, LATTE_DDIM))
    transformer = _TRANSFORMERS.get(kind, f"{kind}Transformer3DModel")
    index = {
        "_class_name": f"{kind}Pipeline",
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "transformer": ["diffusers", transformer],
        "vae": ["diffusers", vae],
    }
    if about.get("experts"):
        index |= {"transformer_2": index["transformer"], "boundary_ratio": 0.875}
        write_json(folder, "transformer_2/config.json", about["transformer"])
        write_weights(folder / "transformer_2/diffusion_pytorch_model.safetensors", kept)
    write_json(folder, "model_index.json", index)
    write_json(folder, "scheduler/scheduler_config.json", scheduler)
    write_json(folder, "text_encoder/config.json", {"model_type": "t5"})
    write_json(folder, "tokenizer/tokenizer_config.json", {})
    write_json(folder, "transformer/config.json", about["transformer"])
    write_json(folder, "vae/config.json", about.get("vae", vae_config))
    write_weights(folder / "transformer/diffusion_pytorch_model.safetensors", kept)
    write_weights(folder / "vae/diffusion_pytorch_model.safetensors", "F32")
    write_weights(folder / "text_encoder/model.safetensors", "BF16")
    return folder


def write_weights(path: Path, dtype: str = "F16", *, tensor: str = "w") -> None:
    """A weight file of 24 parameters."""
    size = 24 * {"F32": 4, "F64": 8, "BF16": 2, "F16": 2}.get(dtype, 1)
    facts = {"dtype": dtype, "shape": [4, 6], "data_offsets": [0, size]}
    header = json.dumps({tensor: facts, "__metadata__": {"format": "pt"}}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))


def write_json(folder: Path, name: str, content: Any) -> None:
    """A JSON file of the folder."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def edit_json(folder: Path, name: str, **changes: Any) -> None:
    """A JSON file of the folder with other values."""
    content = json.loads((folder / name).read_text())
    write_json(folder, name, {**content, **changes})
