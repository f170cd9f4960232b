"""Miniatures in the file formats that repositories of real models use.

What is known of them in general: T5 tokenizers that are a ``spiece.model`` without a
``tokenizer.json`` (CogVideoX, LTX-Video, Latte), shards with an index, weights only as a variant,
pickles in older repositories, a VAE in float32 beside a denoiser in bfloat16 (Wan), two text
encoders (HunyuanVideo), checkpoints of one file for other programs (LTX-Video), a decoder that the
pipeline does not name (Latte's ``vae_temporal_decoder``). No hub was asked: which repository holds
which file today is not claimed.
"""

from __future__ import annotations

import io
import json
import shutil
from typing import TYPE_CHECKING

import sentencepiece
import torch
from safetensors.torch import load_file, save_file

from harness.testing.miniatures import GENS, MINIATURES
from harness.testing.texts import WORDS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SHARD = "20KB"


def cogvideox(folder: Path) -> Path:
    """A sharded text encoder, one file of weights for the denoiser, a tokenizer of pieces."""
    pipeline = MINIATURES["cogvideox"]().to(torch.bfloat16)
    pipeline.save_pretrained(folder)
    pipeline.text_encoder.save_pretrained(fresh(folder / "text_encoder"), max_shard_size="5KB")
    return with_pieces(folder)


def hunyuanvideo(folder: Path) -> Path:
    """Two text encoders with tokenizers of their own kind, all in shards."""
    MINIATURES["hunyuanvideo"]().to(torch.bfloat16).save_pretrained(folder, max_shard_size=SHARD)
    return folder


def wan(folder: Path) -> Path:
    """A float32 VAE, a bfloat16 denoiser in shards, an image encoder that nothing here reads."""
    pipeline = MINIATURES["wan"]()
    pipeline.transformer.to(torch.bfloat16)
    pipeline.text_encoder.to(torch.bfloat16)
    pipeline.save_pretrained(folder, max_shard_size=SHARD)
    for name, class_name in (
        ("image_encoder", "CLIPVisionModel"), ("image_processor", "CLIPImageProcessor"),
    ):  # fmt: skip
        name_component(folder, name, ["transformers", class_name])
        (folder / name).mkdir()
    return folder


def ltx(folder: Path) -> Path:
    """A tokenizer of pieces, and checkpoints for other programs beside."""
    MINIATURES["ltx"]().to(torch.bfloat16).save_pretrained(folder, max_shard_size=SHARD)
    for name in ("ltx-video-2b-v0.9.safetensors", "ltx-video-2b-v0.9.1.safetensors"):
        (folder / name).write_bytes(b"no safetensors")
    return with_pieces(folder)


def latte(folder: Path) -> Path:
    """Weights only as a float16 variant, and a decoder that the index does not name."""
    pipeline = MINIATURES["latte"]().to(torch.float16)
    pipeline.save_pretrained(folder, variant="fp16", max_shard_size=SHARD)
    (folder / "vae_temporal_decoder").mkdir()
    (folder / "vae_temporal_decoder" / "diffusion_pytorch_model.bin").write_bytes(b"no weights")
    return with_pieces(folder)


def two_variants(folder: Path) -> Path:
    """A CogVideoX whose weights are there as float16 and, another seed, as bfloat16."""
    for seed, dtype, variant in ((1, torch.float16, "fp16"), (2, torch.bfloat16, "bf16")):
        MINIATURES["cogvideox"](seed).to(dtype).save_pretrained(folder, variant=variant)
    return folder


def pickled(folder: Path) -> Path:
    """A CogVideoX whose text encoder is a pickle, as in older repositories."""
    MINIATURES["cogvideox"]().save_pretrained(folder)
    file = folder / "text_encoder" / "model.safetensors"
    torch.save(load_file(file), file.with_name("pytorch_model.bin"))
    file.unlink()
    return folder


FORMATS: dict[str, Callable[[Path], Path]] = {
    "cogvideox": cogvideox,
    "hunyuanvideo": hunyuanvideo,
    "wan": wan,
    "ltx": ltx,
    "latte": latte,
}
"""A folder in the format of each family, by its name."""


def experiment(family: str) -> str:
    """An experiment file with the miniature's settings: two steps, one quick method."""
    gen = GENS[family]
    dtype = "float16" if family == "latte" else "bfloat16"
    return (
        f"[gen]\nsteps = 2\nguidance = 4.0\nheight = {gen.height}\nwidth = {gen.width}\n"
        f'frames = {gen.frames}\ndtype = "{dtype}"\n[[method]]\nname = "rtn"\n'
    )


def with_pieces(folder: Path) -> Path:
    """Put a ``spiece.model`` in the place of the tokenizer that transformers wrote."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(WORDS)] * 20), model_writer=written, vocab_size=30,
        hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, pad_piece="<pad>",
        eos_piece="</s>", unk_piece="<unk>", minloglevel=2,
    )  # fmt: skip
    own = fresh(folder / "tokenizer")
    (own / "spiece.model").write_bytes(written.getvalue())
    marks = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    added = {
        str(i): {"content": text, "lstrip": False, "normalized": False, "rstrip": False,
                 "single_word": False, "special": True}
        for i, text in enumerate(("<pad>", "</s>", "<unk>"))
    }  # fmt: skip
    config = {
        "added_tokens_decoder": added, "extra_ids": 0, "legacy": True, "model_max_length": 8,
        "tokenizer_class": "T5Tokenizer", **marks,
    }  # fmt: skip
    (own / "tokenizer_config.json").write_text(json.dumps(config))
    (own / "special_tokens_map.json").write_text(json.dumps(marks))
    return folder


def fresh(folder: Path) -> Path:
    """Empty a folder."""
    shutil.rmtree(folder)
    folder.mkdir()
    return folder


def name_component(folder: Path, name: str, value: object) -> None:
    """Write an entry of ``model_index.json``."""
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))


def change_weights(file: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of a file of weights in place."""
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
