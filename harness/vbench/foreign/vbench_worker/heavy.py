"""The dimensions with large models, each by its official function on a list of one clip.

Models are loaded by the lines that the official ``compute_*`` functions load them by, from the
paths that ``vbench.utils.init_submodules`` names; only who keeps them differs.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vbench_worker import lookahead
from vbench_worker.action import UMT, HumanAction, load_umt
from vbench_worker.decode import reading
from vbench_worker.judges import MissingFileError, Score
from vbench_worker.light import CLIP_B32
from vbench_worker.precision import in_precision
from vbench_worker.prompts import AuxiliaryError, auxiliary, one_prompt
from vbench_worker.substitute import dimension_module, paths, replaced, silent

if TYPE_CHECKING:
    from collections.abc import Callable

    from vbench_worker.clips import Clip
    from vbench_worker.judges import Judge, Settings, Shelf
    from vbench_worker.protocol import Want

CLIP_L14 = "clip-vit-l-14"
AESTHETIC_HEAD = "laion-aesthetic-head"
VICLIP = "viclip-l-14"
TAG2TEXT = "tag2text-swin"

BERT_FOLDER = "bert-base-uncased"  # Tag2Text asks transformers for it by this name


@dataclass(frozen=True, kw_only=True, slots=True)
class AestheticQuality:
    """LAION's aesthetic predictor on CLIP ViT-L/14, mean over all frames, divided by 10."""

    name: str = "aesthetic_quality"
    models: tuple[str, ...] = (CLIP_L14, AESTHETIC_HEAD)

    def score(self, clip: Clip, want: Want, shelf: Shelf) -> Score:
        """Judge one clip."""
        from vbench import aesthetic_quality as official

        model, head = shelf.get(CLIP_L14), shelf.get(AESTHETIC_HEAD)
        with reading(clip), replaced(official, tqdm=silent):
            _, (row,) = official.laion_aesthetic(
                head, model, [str(clip.link)], shelf.settings.device
            )
        return Score(value=row["video_results"], facts={"official": row["video_results"]})


def load_clip_l14(settings: Settings) -> Any:
    """CLIP ViT-L/14 as aesthetic_quality loads it."""
    from vbench import aesthetic_quality as official

    model, _ = official.clip.load(paths("aesthetic_quality")[0], device=settings.device)
    return in_precision(model, settings)


def load_aesthetic_head(settings: Settings) -> Any:
    """LAION's linear head."""
    from vbench import aesthetic_quality as official

    return official.get_aesthetic_model(paths("aesthetic_quality")[1]).to(settings.device)


@dataclass(frozen=True, kw_only=True, slots=True)
class TextMatch:
    """Cosine of ViCLIP's features of the clip (8 frames) and of the prompt.

    overall_consistency and temporal_style are the same computation on other prompts.
    """

    name: str
    models: tuple[str, ...] = (VICLIP,)

    def score(self, clip: Clip, want: Want, shelf: Shelf) -> Score:
        """Judge one clip."""
        official = dimension_module(self.name)
        model = shelf.get(VICLIP)
        with reading(clip), replaced(official, tqdm=silent):
            _, (row,) = getattr(official, self.name)(
                model, one_prompt(clip), model.tokenizer, shelf.settings.device
            )
        return Score(value=row["video_results"], facts={"official": row["video_results"]})


def load_viclip(settings: Settings) -> Any:
    """ViCLIP-L/14 with its tokenizer."""
    from vbench import overall_consistency as official

    vocabulary = settings.weights / "ViCLIP" / "bpe_simple_vocab_16e6.txt.gz"
    tokenizer = official.SimpleTokenizer(str(vocabulary))
    model = official.ViCLIP(tokenizer=tokenizer, **paths("overall_consistency"))
    return in_precision(model.to(settings.device), settings)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """Share of 16 frames whose Tag2Text caption holds every word of the scene.

    The official code has decord scale to 384x384 while it decodes, which no decoded frame can
    stand for, so this dimension opens the file again.
    """

    name: str = "scene"
    models: tuple[str, ...] = (TAG2TEXT,)

    def score(self, clip: Clip, want: Want, shelf: Shelf) -> Score:
        """Judge one clip.

        Raises:
            AuxiliaryError: If the job does not name the scene.
        """
        from vbench import scene as official

        entry = auxiliary(want, "scene")
        if "scene" not in entry["scene"]:
            raise AuxiliaryError("the auxiliary entry of scene does not name a scene")
        model = shelf.get(TAG2TEXT)
        # The official function forgets no_grad: 20 GB instead of 4.5 GB for one clip.
        with reading(clip), replaced(official, tqdm=silent), torch.no_grad():
            _, (row,) = official.scene(model, one_prompt(clip, entry), shelf.settings.device)
        facts = {"official": row["video_results"], "frames": row["frame_count"]}
        return Score(value=row["video_results"], weight=row["frame_count"], facts=facts)


def load_tag2text(settings: Settings) -> Any:
    """Tag2Text with Swin-B.

    Raises:
        MissingFileError: If BERT's folder is not in the working folder, where the official code has
            transformers look for it before the network.
    """
    if not (Path.cwd() / BERT_FOLDER / "vocab.txt").is_file():
        raise MissingFileError(f"no {BERT_FOLDER}/vocab.txt in {Path.cwd()}")
    from vbench import scene as official

    model = official.tag2text_caption(**paths("scene"))
    model.eval()
    return in_precision(model.to(settings.device), settings)


@dataclass(frozen=True, kw_only=True, slots=True)
class AppearanceStyle:
    """Similarity of CLIP ViT-B/32 between each frame and the name of the style, mean over frames.

    The official aggregate is the mean over all frames of all clips, so a clip weighs its frames.
    """

    name: str = "appearance_style"
    models: tuple[str, ...] = (CLIP_B32,)

    def score(self, clip: Clip, want: Want, shelf: Shelf) -> Score:
        """Judge one clip.

        Raises:
            AuxiliaryError: If the job does not name the style.
        """
        from vbench import appearance_style as official

        entry = auxiliary(want, "appearance_style")
        settings, model = shelf.settings, shelf.get(CLIP_B32)
        stand_in = nullcontext(model)
        if settings.batch > 1:
            stand_in = lookahead.styled_frames(
                official, model, clip.frames_rgb, settings.device, settings.batch
            )
        with reading(clip), replaced(official, tqdm=silent), stand_in as asked:
            _, (row,) = official.appearance_style(asked, one_prompt(clip, entry), settings.device)
        value, frames = float(row["video_results"]), len(row["frame_results"])
        return Score(value=value, weight=frames, facts={"official": value, "frames": frames})


JUDGES: dict[str, Judge] = {
    judge.name: judge
    for judge in (
        AestheticQuality(),
        TextMatch(name="overall_consistency"),
        TextMatch(name="temporal_style"),
        Scene(),
        HumanAction(),
        AppearanceStyle(),
    )
}

LOADERS: dict[str, Callable[[Settings], Any]] = {
    CLIP_L14: load_clip_l14,
    AESTHETIC_HEAD: load_aesthetic_head,
    VICLIP: load_viclip,
    TAG2TEXT: load_tag2text,
    UMT: load_umt,
}
"""CLIP ViT-B/32 is loaded by ``light``, which shares it with appearance_style."""
