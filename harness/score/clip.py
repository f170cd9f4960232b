"""CLIPSIM and CLIP-Temp: how well frames fit the prompt, and how little they change.

    clipsim    mean over frames of the cosine of CLIP's embeddings of frame and prompt
    clip_temp  mean cosine of the embeddings of neighbouring frames

EvalCrafter (Liu et al., CVPR 2024) defines both with CLIP ViT-B/32, and quantization papers print
them. Values are cosines, not multiplied by 100 or by CLIP's learned scale.

Each is computed twice. ``clipsim`` and ``clip_temp`` prepare frames as CLIP was trained: the short
side resized to 224 pixels by bicubic interpolation, centre crop, colours normalised. EvalCrafter's
published script (metrics/Scores_with_CLIP/Scores_with_CLIP.py) does otherwise: it squeezes each
frame to 224 x 224 and hands CLIP the values 0..255 as they are, without dividing and without CLIP's
normalisation. ``clipsim_evalcrafter`` and ``clip_temp_evalcrafter`` repeat that. Papers do not say
which of the two they print, and a number of one kind means nothing beside the other.

The script resizes by OpenCV to whole levels for CLIPSIM and by torchvision to floats for CLIP-Temp;
here both are bilinear in floats, so its CLIPSIM differs by a rounding of at most one level in 255.

A clip that does not move has a CLIP-Temp of 1: it is read as closeness to full precision.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.score.clip_weights import (
    check_clip_files,
    clip_folder,
    clip_identity,
    clip_missing,
)
from harness.score.scorer import FILE, TEXT, Clip, Scorer
from harness.spec import QUALITY, Metric

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import torch

MIN_FRAMES = 2
_BATCH = 16  # frames at a time


class CLIPScores(Scorer):
    """CLIPSIM and CLIP-Temp, each on two preparations of the frames."""

    name = "clip"
    about = "CLIPSIM and CLIP-Temp, two preparations each"
    metrics = (
        Metric(
            name="clipsim", unit="cosine", better="higher", title="CLIP\nSIM", block=QUALITY,
            digits=4,
        ),
        # Of a frozen clip it is 1, whatever is on it.
        Metric(
            name="clip_temp", unit="cosine", title="CLIP\ntemp", block=QUALITY, digits=4,
            closeness=True,
        ),
        Metric(
            name="clipsim_evalcrafter", unit="cosine", better="higher",
            title="CLIPSIM\nEvalCrafter", block=QUALITY, digits=4, shown=False,
        ),
        Metric(
            name="clip_temp_evalcrafter", unit="cosine", title="CLIP temp\nEvalCrafter",
            block=QUALITY, digits=4, shown=False, closeness=True,
        ),
    )  # fmt: skip
    reads = FILE
    asks = TEXT
    packages = ("torch", "transformers", "tokenizers", "pillow", "numpy")

    def missing(self) -> str:
        """Whether its weights were fetched."""
        return clip_missing()

    def weights(self) -> str:
        """Digest over the files of the checkpoint."""
        return clip_identity()

    def score(self, clip: Clip, reference: Clip | None) -> dict[str, float]:
        """Judge the coded frames."""
        del reference
        return clip_scores(clip.coded_frames(), clip.prompt.text)


def clip_scores(frames: np.ndarray, prompt: str, *, device: str = "cpu") -> dict[str, float]:
    """Score a clip; the model is loaded once in a process, in single precision.

    Args:
        frames: The clip, uint8 ``[frames, height, width, 3]``.
        prompt: What was asked for; what exceeds CLIP's text length (77 tokens) is cut off.
        device: What torch computes on.

    Returns:
        Each metric's value, in -1..1.

    Raises:
        HarnessError: The clip has one frame, which has no neighbour.
        InfraError: The weights are not there or have changed.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != "uint8":
        raise ValueError(f"frames are {frames.dtype} {frames.shape}, not uint8 [T, H, W, 3]")
    if len(frames) < MIN_FRAMES:
        raise HarnessError(
            f"clip has {len(frames)} frame, CLIP-Temp needs {MIN_FRAMES}", "generate more frames"
        )
    model, tokenizer = _load(str(clip_folder()), clip_identity(), device)
    values: dict[str, float] = {}
    for suffix, prepare in (("", clip_pixels), ("_evalcrafter", evalcrafter_pixels)):
        images, text = _embeddings(model, tokenizer, frames, prompt, prepare)
        values[f"clipsim{suffix}"] = float((images @ text).mean())
        values[f"clip_temp{suffix}"] = float((images[1:] * images[:-1]).sum(dim=1).mean())
    return values


def clip_pixels(frames: np.ndarray, side: int) -> torch.Tensor:
    """Frames as CLIP was trained on them.

    Args:
        frames: uint8 ``[frames, height, width, 3]``.
        side: Pixels of CLIP's square input.

    Returns:
        ``[frames, 3, side, side]``.
    """
    import numpy as np
    import torch
    from PIL import Image
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    height, width = frames.shape[1:3]
    # the long side is cut to whole pixels, as CLIP's own resize does
    scaled = [side * size // min(height, width) for size in (height, width)]
    top, left = ((size - side) // 2 for size in scaled)
    cut = (slice(top, top + side), slice(left, left + side))
    shaped = [
        np.asarray(Image.fromarray(frame).resize((scaled[1], scaled[0]), Image.Resampling.BICUBIC))
        for frame in frames
    ]
    batch = torch.from_numpy(np.stack([image[cut] for image in shaped])).float() / 255
    normal = (batch - torch.tensor(OPENAI_CLIP_MEAN)) / torch.tensor(OPENAI_CLIP_STD)
    return normal.permute(0, 3, 1, 2)


def evalcrafter_pixels(frames: np.ndarray, side: int) -> torch.Tensor:
    """Frames as EvalCrafter's script hands them to CLIP: squeezed to a square, 0..255.

    Args:
        frames: uint8 ``[frames, height, width, 3]``.
        side: Pixels of CLIP's square input.

    Returns:
        ``[frames, 3, side, side]``.
    """
    import numpy as np
    import torch
    from torch.nn.functional import interpolate

    batch = torch.tensor(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float()
    return interpolate(batch, size=(side, side), mode="bilinear", antialias=False)


@lru_cache(maxsize=1)
def _load(folder: str, identity: str, device: str) -> tuple[Any, Any]:
    """Model and tokenizer of a checkpoint on this machine, whose files are read once."""
    import torch
    from transformers import CLIPModel, CLIPTokenizer

    del identity  # only tells one checkpoint in this folder from the next
    check_clip_files()

    model = CLIPModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    return model.to(device).eval(), tokenizer


def _embeddings(
    model: Any,
    tokenizer: Any,
    frames: np.ndarray,
    prompt: str,
    prepare: Callable[[np.ndarray, int], torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit embeddings of the frames, ``[frames, d]``, and of the prompt, ``[d]``, in double."""
    import torch

    length = model.config.text_config.max_position_embeddings
    side = model.config.vision_config.image_size
    words = tokenizer(prompt, truncation=True, max_length=length, return_tensors="pt")
    words = words.to(model.device)
    images: list[torch.Tensor] = []
    with torch.inference_mode():
        for start in range(0, len(frames), _BATCH):
            pixels = prepare(frames[start : start + _BATCH], side).to(model.device)
            found = model(**words, pixel_values=pixels)
            images.append(found.image_embeds)
    return torch.cat(images).double(), found.text_embeds[0].double()
