"""The models: bundled ones by name, one's own by folder, those of the hub by name or id."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import HarnessError, UsageError, unknown_name
from harness.models import shapes
from harness.models.admission import admit, refuse_quantized_storage
from harness.models.description import (
    DENOISER,
    SECOND_DENOISER,
    component_weights,
    describe,
    shards,
    weight_file,
)
from harness.models.file_digests import remembered_digest
from harness.models.files import has_weights
from harness.models.hub import HUB, MODEL_INDEX, is_hub_id, lock, repository
from harness.models.hub_files import HubFiles
from harness.models.model_files import FolderFiles, ModelFiles, read_object
from harness.models.settings import settle
from harness.models.weights import refuse_pointer
from harness.spec import GenSpec, ModelSpec
from harness.store.keys import digest

if TYPE_CHECKING:
    from harness.models.description import Description
    from harness.models.settings import Settled

SHAPES_WEIGHTS = "HARNESS_SHAPES_WEIGHTS"

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

    Small files and headers are read, never weights: a model that cannot be run is refused here.

    Raises:
        UsageError: It is none of them.
        HarnessError: It is no text-to-video pipeline of a supported family in full precision, its
            files are damaged, or the hub cannot be asked.
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
    if (own := _folder(name)) is not None:
        description, settled = open_model(FolderFiles(own), str(own))
        return ModelSpec(
            name=re.sub(r"[^\w.-]+", "-", own.name),
            repo=str(own),
            family=admit(description),
            gen=settled.gen,
            revision=folder_revision(own),
        )
    if name in HUB or is_hub_id(name):
        return _hub_spec(name)
    error = unknown_name("model", name, [*BUNDLED, *HUB])
    raise UsageError(
        error.message, f"{error.hint}; or a local folder in diffusers format, or a hub id"
    )


def open_model(files: ModelFiles, name: str) -> tuple[Description, Settled]:
    """Describe a model and settle what it is run with, where it is one that can be run.

    Args:
        files: Its files.
        name: What the user knows it by.

    Raises:
        HarnessError: It cannot be run.
    """
    description = describe(files, name)
    admit(description)
    _check_parts(files, description)
    if isinstance(files, FolderFiles):
        _check_folder(files, description)
    denoiser = component_weights(files, description, DENOISER)
    refuse_quantized_storage(description, DENOISER, denoiser)
    if SECOND_DENOISER in description.components:
        second = component_weights(files, description, SECOND_DENOISER)
        refuse_quantized_storage(description, SECOND_DENOISER, second)
    description = replace(description, stored=denoiser.dtype)
    return description, settle(description)


def files_of(spec: ModelSpec) -> ModelFiles:
    """The files of a model that was resolved."""
    folder = Path(spec.repo)
    return FolderFiles(folder) if folder.is_absolute() else HubFiles(spec.repo, spec.revision)


def describe_spec(spec: ModelSpec) -> Description:
    """The description of a model that was resolved; only small files are read.

    Raises:
        HarnessError: Its files have changed since.
    """
    return describe(files_of(spec), spec.name)


def _check_parts(files: ModelFiles, description: Description) -> None:
    """Refuse a pipeline that lacks a component, or weight files of one.

    Raises:
        HarnessError: It does.
    """
    there = {name.partition("/")[0] for name in files.names()}
    if missing := [part for part in description.components if part not in there]:
        raise HarnessError(
            f"'{files.place}' holds nothing of '{missing[0]}', which its index names",
            "download the whole pipeline; an interrupted download leaves this",
        )
    for part in description.components:
        if has_weights(part):
            name = weight_file(files, description, part)
            if name.endswith(".json"):
                shards(files, name)


def _check_folder(files: FolderFiles, description: Description) -> None:
    """Read the header of every weight file, and find pointers of git-lfs among the others.

    Raises:
        HarnessError: A file is missing, cut, a pointer, or stored quantized.
    """
    for name in files.names():
        if name.partition("/")[0] in (*description.components, MODEL_INDEX):
            refuse_pointer(files.folder / name)
    for part in description.components:
        if has_weights(part):
            weights = component_weights(files, description, part)
            refuse_quantized_storage(description, part, weights)


def _hub_spec(name: str) -> ModelSpec:
    repo = repository(name)
    locked = None
    try:
        locked = lock(repo)
        files = HubFiles(repo, locked["revision"])
        description, settled = open_model(files, name)
    except HarnessError as cause:
        if locked is not None and not files.listed:
            raise HarnessError(
                f"'{repo}' cannot be read from the hub, nor from its cache: {cause.message}",
                "check the network, or download the model and give the folder",
            ) from cause
        if name in HUB or Path(name).exists():
            raise
        raise type(cause)(
            cause.message, f"{cause.hint}; there is no folder '{name}' here"
        ) from cause
    return ModelSpec(
        name=name.replace("/", "--"),
        repo=repo,
        family=admit(description),
        gen=settled.gen,
        revision=locked["revision"],
        locked=f"locked at first use, {locked['at']}",
    )


def _folder(name: str) -> Path | None:
    """The folder that a name means, absolute; None where it can only be meant for the hub.

    Raises:
        UsageError: It can only be meant for a folder, and there is none in diffusers format.
    """
    try:
        folder = Path(name).expanduser()
    except RuntimeError as cause:
        raise UsageError(f"model folder '{name}': {cause}", "write the path in full") from cause
    if (folder / MODEL_INDEX).is_file():
        return folder.resolve()
    if folder.is_dir():
        raise UsageError(
            f"model folder '{name}' is not in diffusers format",
            f"give a folder that holds {MODEL_INDEX}, as save_pretrained writes it",
        )
    if folder.is_file():
        raise UsageError(
            f"model '{name}' is a file, not a folder in diffusers format",
            f"give a folder that holds {MODEL_INDEX}, as save_pretrained writes it",
        )
    known = name in HUB or name in [model.repo for model in HUB.values()]
    if not known and _is_path(name):
        raise UsageError(f"model folder '{name}' is not there", _near(folder))
    return None


def _is_path(name: str) -> bool:
    """Whether a name that no folder has can only have been meant for one."""
    marked = name.startswith((".", "~", "/")) or name.endswith("/") or name.count("/") > 1
    return marked or ("/" in name and Path(name.partition("/")[0]).is_dir())


def _near(folder: Path) -> str:
    """What lies where a path ends to be right."""
    parent, wrong = folder.parent, folder.name
    while not parent.is_dir() and parent != parent.parent:
        parent, wrong = parent.parent, parent.name
    try:
        there = sorted(path.name for path in parent.iterdir() if path.is_dir())
    except OSError:
        there = []
    close = difflib.get_close_matches(wrong, there, n=1, cutoff=0.5)
    if close:
        return f"did you mean {parent / close[0]}? there is no '{wrong}' in '{parent}'"
    return f"there is no '{wrong}' in '{parent}'"


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
    index = read_object(folder / MODEL_INDEX, "install the package, or download the model, again")
    parts = [folder / part for part in index if (folder / part).is_dir()]
    files = [folder / MODEL_INDEX, *(p for part in sorted(parts) for p in sorted(part.rglob("*")))]
    digests = [
        [p.relative_to(folder).as_posix(), remembered_digest(p)] for p in files if p.is_file()
    ]
    return digest(digests)


def transformer_parameters(spec: ModelSpec) -> int:
    """Number of parameters of the denoiser, read from the headers of its weight files.

    Raises:
        HarnessError: There are none, they are damaged, or the hub cannot be asked.
    """
    files = files_of(spec)
    return component_weights(files, describe(files, spec.name), DENOISER).count
