"""Write random weights for the heavy dimensions, in the formats that the official code reads.

Runs in the scoring interpreter, as a script: ``python random_heavy_weights.py FOLDER [--ids ID ...]
[--full]``, with the folder of ``vbench_worker`` on ``PYTHONPATH``. ViCLIP, UMT and Tag2Text have
one architecture in the official code, so their files are as large as the official ones; CLIP
ViT-L/14 is a miniature unless ``--full`` is given.

The values are meaningless but not constant: UMT answers the actions of some prompts, and the words
that Tag2Text can say hold the names of the official scenes.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vbench_worker import compat
from vbench_worker.substitute import replaced

if TYPE_CHECKING:
    from collections.abc import Callable

SEED = 20240
VOCABULARY = 30522
"""Words of bert-base-uncased, which Tag2Text's decoder is built for (``med_config.json``)."""
PROMPT_WORDS = ("a", "picture", "of")
SURE = 6.0
"""Logit of the classes that UMT shall answer: above the 0.85 that the official code asks for."""
ANSWERED = 3
"""How many actions, from the start of the official list, UMT answers; at most five count."""


NAMED_SCENES = 12
"""How many scenes, from the start of the official list, Tag2Text has words for."""
LOUDNESS = 8.0
"""Factor on what a random Tag2Text hears of the image and of the place in the sentence."""


def official_prompts(dimension: str) -> list[dict[str, Any]]:
    """Entries of the installed package's prompt list that belong to a dimension."""
    package = Path(str(importlib.util.find_spec("vbench").origin)).parent
    entries = json.loads((package / "VBench_full_info.json").read_text(encoding="utf-8"))
    return [e for e in entries if dimension in e["dimension"]]


def write_bpe(folder: Path, full: bool) -> None:
    """The word list that ViCLIP shares with CLIP, whose package ships it."""
    package = Path(str(importlib.util.find_spec("clip").origin)).parent
    name = "bpe_simple_vocab_16e6.txt.gz"
    (folder / "ViCLIP").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(package / name, folder / "ViCLIP" / name)


def write_clip_l14(folder: Path, full: bool) -> None:
    """A CLIP with the 768 features that the aesthetic head takes."""
    from clip.model import CLIP

    sys.path.append(str(Path(__file__).parent))
    from random_weights import write_clip

    vision = (24, 1024, 14) if full else (2, 64, 32)
    text = (768, 12, 12) if full else (64, 1, 2)
    model = CLIP(768, 224, *vision, 77, 49408, *text)
    write_clip(model, folder / "clip_model" / "ViT-L-14.pt")


def write_aesthetic_head(folder: Path, full: bool) -> None:
    """LAION's linear layer."""
    import torch

    path = folder / "aesthetic_model" / "emb_reader" / "sa_0_4_vit_l_14_linear.pth"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(torch.nn.Linear(768, 1).state_dict(), path)


def write_viclip(folder: Path, full: bool) -> None:
    """ViCLIP-L/14; what its constructor leaves as ``torch.empty`` is drawn here."""
    import torch

    write_bpe(folder, full)
    from vbench.third_party.ViCLIP.simple_tokenizer import SimpleTokenizer
    from vbench.third_party.ViCLIP.viclip import ViCLIP

    path = folder / "ViCLIP" / "bpe_simple_vocab_16e6.txt.gz"
    model = ViCLIP(tokenizer=SimpleTokenizer(str(path)), pretrain=None)
    vision, text = model.vision_encoder, model.text_encoder
    for left_empty in (vision.proj, text.positional_embedding, text.text_projection):
        torch.nn.init.normal_(left_empty, std=0.02)
    torch.nn.init.normal_(vision.temporal_positional_embedding, std=0.02)
    torch.save({"model": model.state_dict()}, folder / "ViCLIP" / "ViClip-InternVid-10M-FLT.pth")


def write_umt(folder: Path, full: bool) -> None:
    """UMT ViT-L/16 as human_action builds it, sure of some actions of the official list."""
    import torch
    from vbench import human_action as official

    path = folder / "umt_model" / "l16_ptk710_ftk710_ftk400_f16_res224.pth"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({}, path)
    made: list[Any] = []

    def make(*args: Any, **options: Any) -> Any:
        made.append(create(*args, **options))
        return made[0]

    create = official.create_model
    # Without clips the official function builds its model and then divides by their number.
    with replaced(official, create_model=make), contextlib.suppress(ZeroDivisionError):
        official.human_action(str(path), [], torch.device("cpu"))
    state = made[0].state_dict()
    numbers = {name: int(number) for number, name in official.build_dict().items()}
    for entry in official_prompts("human_action")[:ANSWERED]:
        state["head.bias"][numbers[entry["prompt_en"].lower().split("person is ")[-1]]] = SURE
    torch.save(state, path)


def write_bert(folder: Path, full: bool) -> None:
    """A vocabulary of scene names, each with a number to tell them apart, and an empty BERT."""
    import torch
    from transformers import BertConfig

    entries = official_prompts("scene")[:NAMED_SCENES]
    scenes = [e["auxiliary_info"]["scene"]["scene"]["scene"] for e in entries]
    names = sorted({word for scene in scenes for word in scene.split(" ")})
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PROMPT_WORDS]
    words += [f"{names[i % len(names)]}{i}" for i in range(VOCABULARY - len(words))]
    bert = folder / "bert-base-uncased"
    bert.mkdir(parents=True, exist_ok=True)
    (bert / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    BertConfig().save_pretrained(bert)
    # Tag2Text's own file holds every parameter; this one only has to be one that opens.
    torch.save({"embeddings.LayerNorm.weight": torch.ones(768)}, bert / "pytorch_model.bin")


def write_tag2text(folder: Path, full: bool) -> None:
    """Tag2Text with Swin-B for 384 pixels."""
    import torch

    write_bert(folder, full)
    from vbench.third_party.tag2Text.tag2text import tag2text_caption

    torch.manual_seed(SEED)
    model = tag2text_caption(image_size=384, vit="swin_b")
    # As drawn, every image is told in one word, said again and again.
    louder = [p for n, p in model.named_parameters() if "crossattention" in n and p.ndim == 2]
    for parameter in (*louder, model.text_decoder.bert.embeddings.position_embeddings.weight):
        parameter.mul_(LOUDNESS)
    path = folder / "caption_model" / "tag2text_swin_14m.pth"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": model.state_dict()}, path)


WRITERS: dict[str, Callable[[Path, bool], None]] = {
    "clip-vit-l-14": write_clip_l14,
    "laion-aesthetic-head": write_aesthetic_head,
    "clip-bpe": write_bpe,
    "viclip-l-14": write_viclip,
    "umt-l16": write_umt,
    "bert-base-uncased": write_bert,
    "tag2text-swin": write_tag2text,
}


def main() -> None:
    """Write what is asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ids", nargs="+", choices=WRITERS, default=list(WRITERS))
    parser.add_argument("--full", action="store_true")
    chosen = parser.parse_args()
    folder = chosen.folder.resolve()
    compat.prepare(folder)
    # So that nobody takes them for the official ones: harness.vbench.weights.STAND_IN.
    (folder / "stand-in-weights.txt").write_text("random\n", encoding="utf-8")
    import torch

    for name in chosen.ids:
        torch.manual_seed(SEED)
        WRITERS[name](folder, chosen.full)
        print(name, flush=True)


if __name__ == "__main__":
    main()
