"""Stage `export`: assemble the pipeline folder that `CogVideoXPipeline.from_pretrained` loads."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXPipeline, CogVideoXTransformer3DModel
from transformers import T5EncoderModel, T5Tokenizer

from harness.errors import HarnessError
from harness.models.shapes import DECODER_STAGES, checkpoint
from harness.models.shapes.train_denoiser import new_scheduler, new_transformer
from harness.models.shapes.train_vae import new_vae, normalise_latents_


def _vae(folder: Path) -> AutoencoderKLCogVideoX:
    if (folder / "vae").exists():
        vae = AutoencoderKLCogVideoX.from_pretrained(folder / "vae")
        for stage in DECODER_STAGES:
            decoder = checkpoint.read(folder / f"{stage}.pt")
            if decoder is not None:
                vae.decoder.load_state_dict(decoder["average"])
        return vae
    vae = new_vae()
    state = checkpoint.read(folder / "vae.pt")
    if state is None:
        raise HarnessError(f"no autoencoder in {folder}", "run stage vae first")
    vae.load_state_dict(state["average"])
    normalise_latents_(vae, 0, clips=8)
    return vae


def _transformer(folder: Path) -> tuple[CogVideoXTransformer3DModel, int]:
    model = new_transformer()
    state = checkpoint.read(folder / "denoiser.pt")
    if state is None:
        return model, 0
    model.load_state_dict(state["average"])
    return model, int(state["step"])


def export(folder: Path, target: Path) -> int:
    """Write the pipeline in half precision; return the denoiser's steps.

    What is not trained yet is written untrained, so that the folder can be used from the first
    minute on.
    """
    transformer, steps = _transformer(folder)
    pipeline = CogVideoXPipeline(
        tokenizer=T5Tokenizer.from_pretrained(folder / "tokenizer"),
        text_encoder=T5EncoderModel.from_pretrained(folder / "text_encoder"),
        vae=_vae(folder),
        transformer=transformer,
        scheduler=new_scheduler(),
    )
    pipeline.to(torch.float16, silence_dtype_warnings=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        built = Path(scratch) / "pipeline"
        pipeline.save_pretrained(built, safe_serialization=True)
        for config in built.rglob("config.json"):
            _forget_origin(config)
        if target.exists():
            target.rename(Path(scratch) / "old")
        built.rename(target)
    return steps


def _forget_origin(config: Path) -> None:
    """Drop the folder a part was loaded from: it means nothing elsewhere."""
    facts = json.loads(config.read_text(encoding="utf-8"))
    if facts.pop("_name_or_path", None) is not None:
        config.write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")
