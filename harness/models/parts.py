"""What a pipeline is made of: parameters and configs of its networks, without loading any."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.models.files import (
    choose_weights,
    components,
    files_of,
    has_weights,
    shards_of,
    weight_files,
)
from harness.models.hub import MODEL_INDEX, fetch

if TYPE_CHECKING:
    from harness.spec import ModelSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One network of a pipeline.

    Attributes:
        name: As ``model_index.json`` has it: ``text_encoder_2``.
        kind: Its class.
        parameters: Their number.
        config: Its config.
    """

    name: str
    kind: str
    parameters: int
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> bool:
        """Whether it encodes text."""
        return self.name.startswith("text_encoder")

    @property
    def denoiser(self) -> bool:
        """Whether it is a denoiser."""
        return self.name.startswith("transformer")


def parts(spec: ModelSpec, cache: Path) -> tuple[Part, ...]:
    """The networks of a model that a run from text loads.

    Args:
        spec: Folder, or hub id and revision.
        cache: Folder of remembered facts: the hub is asked once for a revision.

    Raises:
        HarnessError: A file cannot be read, or the hub cannot be asked.
    """
    folder = Path(spec.repo)
    if folder.is_absolute():
        return folder_parts(folder)
    from harness.store.durable import replace_file
    from harness.store.keys import digest, plain

    path = cache / f"{digest(['parts', spec.repo, spec.revision])}.json"
    if path.is_file():
        return tuple(Part(**entry) for entry in json.loads(path.read_text(encoding="utf-8")))
    found = _hub_parts(spec)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps([plain(entry) for entry in found]))
    return found


def folder_parts(folder: Path) -> tuple[Part, ...]:
    """The networks of a folder in diffusers format, from configs and headers of weight files.

    One whose weights cannot be loaded counts none: that it cannot is said where models are loaded.

    Raises:
        HarnessError: A file cannot be read.
    """
    found = []
    for name, (library, kind) in _networks(_json(folder / MODEL_INDEX)).items():
        try:
            files = weight_files(folder, name, library)
        except HarnessError:
            files = ()
        count = sum(header_parameters(path) for path in files)
        config = _json(folder / name / "config.json")
        found.append(Part(name=name, kind=kind, parameters=count, config=config))
    return tuple(found)


def header_parameters(path: Path) -> int:
    """Number of values in a safetensors file, from its header.

    Raises:
        HarnessError: It has none.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= path.stat().st_size:
                raise ValueError("no header")
            header = json.loads(file.read(length))
        return sum(math.prod(t["shape"]) for n, t in header.items() if n != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as cause:
        raise HarnessError(
            f"'{path}' is no safetensors file, or one that was cut short",
            "download the file again; with git, `git lfs pull`",
        ) from cause


def _networks(index: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {name: entry for name, entry in components(index).items() if has_weights(name)}


def _hub_parts(spec: ModelSpec) -> tuple[Part, ...]:
    from huggingface_hub import HfApi

    api, revision = HfApi(), spec.revision
    index = _json(fetch(spec.repo, MODEL_INDEX, revision))
    found = []
    try:
        names = api.list_repo_files(spec.repo, revision=revision)
        for name, (library, kind) in _networks(index).items():
            chosen = choose_weights(files_of(names, name), name, library)
            files = [chosen.file]
            if chosen.sharded:
                files = shards_of(fetch(spec.repo, f"{name}/{chosen.file}", revision))
            heads = [
                api.parse_safetensors_file_metadata(spec.repo, f"{name}/{f}", revision=revision)
                for f in files
            ]
            count = sum(sum(head.parameter_count.values()) for head in heads)
            config = _json(fetch(spec.repo, f"{name}/config.json", revision))
            found.append(Part(name=name, kind=kind, parameters=count, config=config))
    except HarnessError:
        raise
    except Exception as cause:  # the client lets errors of its HTTP library through
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise HarnessError(
            f"'{spec.repo}' cannot be read from the hub: {reason}",
            "check the network and the id, or download the model and give the folder",
        ) from cause
    return tuple(found)


def _json(path: Path) -> dict[str, Any]:
    try:
        held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise HarnessError(
            f"'{path}' cannot be read ({cause.__class__.__name__})",
            "give a folder in diffusers format, as save_pretrained writes it",
        ) from cause
    return held
