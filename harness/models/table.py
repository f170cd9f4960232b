"""The models: bundled ones by name, one's own by folder, those of the hub by name or id."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError, UsageError, unknown_name
from harness.models import shapes
from harness.models.families import family_name_of
from harness.models.files import check_folder
from harness.models.hub import (
    FAMILY_GEN,
    HUB,
    MODEL_INDEX,
    hub_parameters,
    hub_spec,
    is_hub_id,
    refuse_two_denoisers,
)
from harness.spec import GenSpec, ModelSpec
from harness.store.keys import digest, file_digest

if TYPE_CHECKING:
    from collections.abc import Mapping

SHAPES_WEIGHTS = "HARNESS_SHAPES_WEIGHTS"
# diffusers' CogVideoXPipeline.__call__ defaults; the folder does not record them.
DEFAULT_STEPS = 50
DEFAULT_GUIDANCE = 6.0
DEFAULT_FPS = 8

SHAPES_GEN = GenSpec(
    height=shapes.HEIGHT,
    width=shapes.WIDTH,
    frames=shapes.FRAMES,
    fps=shapes.FPS,
    steps=shapes.STEPS,
    guidance=shapes.GUIDANCE,
    dtype="float32",
    max_text_tokens=shapes.MAX_TEXT_TOKENS,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class BundledModel:
    """A model that ships with the package.

    Attributes:
        variant: What is done to the weights when they are loaded, empty for nothing.
        about: One line for the list.
        clip_s: Guessed seconds a clip on one core; only for the estimate of the first run, after
            which the store's journal knows.
    """

    variant: str
    about: str
    clip_s: float = 3.0


BUNDLED = {
    "shapes": BundledModel(variant="", about="coloured shapes that move; CogVideoX, trained here"),
    "shapes-outliers": BundledModel(
        variant="outliers", about="shapes with planted activation outliers; a stress test"
    ),
}


def model_spec(name: str) -> ModelSpec:
    """Resolve what the user typed: a bundled name, a folder in diffusers format, or a hub model.

    Raises:
        UsageError: It is none of them.
        HarnessError: The denoiser belongs to no supported family, or the hub cannot be asked.
    """
    if name in BUNDLED:
        folder = Path(os.environ.get(SHAPES_WEIGHTS) or shapes.weights_dir()).absolute()
        spec = ModelSpec(
            name=name,
            repo=str(folder),
            family="cogvideox",
            gen=SHAPES_GEN,
            variant=BUNDLED[name].variant,
            judge="oracle",
        )
        return replace(spec, revision=folder_revision(folder))
    folder = Path(name).expanduser()
    if (folder / MODEL_INDEX).is_file():
        return _folder_spec(folder.resolve())
    if folder.is_dir():
        raise UsageError(
            f"model folder '{name}' is not in diffusers format",
            f"give a folder that holds {MODEL_INDEX}, as save_pretrained writes it",
        )
    if name in HUB or is_hub_id(name):
        return hub_spec(name)
    error = unknown_name("model", name, [*BUNDLED, *HUB])
    raise UsageError(
        error.message, f"{error.hint}; or a local folder in diffusers format, or a hub id"
    )


def folder_revision(folder: Path) -> str:
    """Digest of a pipeline's files, so that a changed weight is another model.

    Only ``model_index.json`` and the folders it names count; notes that lie beside them do not.

    Raises:
        HarnessError: The folder holds no model.
    """
    if not (folder / MODEL_INDEX).is_file():
        raise HarnessError(
            f"there are no model weights in '{folder}'",
            f"install the package again, or set {SHAPES_WEIGHTS} to a trained folder",
        )
    parts = [folder / part for part in _json(folder / MODEL_INDEX) if (folder / part).is_dir()]
    files = [folder / MODEL_INDEX, *(p for part in sorted(parts) for p in sorted(part.rglob("*")))]
    digests = [[p.relative_to(folder).as_posix(), file_digest(p)] for p in files if p.is_file()]
    return digest(digests)


def transformer_parameters(spec: ModelSpec) -> int:
    """Number of parameters of the denoiser, read from the headers of its weight files.

    Raises:
        HarnessError: The folder holds no denoiser weights.
    """
    if not Path(spec.repo).is_absolute():
        return hub_parameters(spec)
    count = 0
    files = sorted((Path(spec.repo) / "transformer").glob("*.safetensors"))
    if not files:
        raise HarnessError(
            f"'{spec.repo}' holds no denoiser weights",
            "save the model with safe_serialization=True",
        )
    for path in files:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, tensor in header.items():
            if name != "__metadata__":
                count += math.prod(tensor["shape"])
    return count


def _folder_spec(folder: Path) -> ModelSpec:
    index = _json(folder / MODEL_INDEX)
    refuse_two_denoisers(str(folder), index)
    check_folder(folder, index)
    family = family_name_of(str(index.get("transformer", ["", ""])[1]))
    return ModelSpec(
        name=re.sub(r"[^\w.-]+", "-", folder.name),
        repo=str(folder),
        family=family,
        gen=_cogvideox_gen(folder) if family == "cogvideox" else FAMILY_GEN[family],
        revision=folder_revision(folder),
    )


def _cogvideox_gen(folder: Path) -> GenSpec:
    transformer, vae = _json(folder / "transformer/config.json"), _json(folder / "vae/config.json")
    return cogvideox_gen(transformer, 2 ** (len(vae["block_out_channels"]) - 1))


def cogvideox_gen(transformer: Mapping[str, Any], scale: int) -> GenSpec:
    """The settings that a CogVideoX denoiser was trained at.

    Args:
        transformer: Its config.
        scale: Pixels of a frame to one of a latent, on each side.
    """
    return GenSpec(
        height=transformer["sample_height"] * scale,
        width=transformer["sample_width"] * scale,
        frames=transformer["sample_frames"],
        fps=DEFAULT_FPS,
        steps=DEFAULT_STEPS,
        guidance=DEFAULT_GUIDANCE,
        max_text_tokens=transformer["max_text_seq_length"],
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise HarnessError(
            f"'{path}' cannot be read ({cause.__class__.__name__})",
            "give a folder in diffusers format, as save_pretrained writes it",
        ) from cause
    return found
