"""What a pipeline is made of: parameters and configs of its components, without loading any."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.models.hub import MODEL_INDEX

if TYPE_CHECKING:
    from harness.spec import ModelSpec

WEIGHTY = ("text_encoder", "transformer", "vae")
"""What the names of the components begin with that a run from text needs and that have weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One component with weights.

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
    """The components of a model.

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
        held = json.loads(path.read_text(encoding="utf-8"))
        return tuple(Part(**entry) for entry in held)
    found = _hub_parts(spec)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps([plain(entry) for entry in found]))
    return found


def folder_parts(folder: Path) -> tuple[Part, ...]:
    """The components of a folder in diffusers format, from configs and headers of weight files.

    Raises:
        HarnessError: A file cannot be read.
    """
    found = []
    for name, kind in weighty(_json(folder / MODEL_INDEX)).items():
        place = folder / name
        files = loaded_files([p.name for p in place.glob("*.safetensors")])
        found.append(
            Part(
                name=name,
                kind=kind,
                parameters=sum(header_parameters(place / file) for file in files),
                config=_json(place / "config.json"),
            )
        )
    return tuple(found)


def weighty(index: dict[str, Any]) -> dict[str, str]:
    """Class of every component that has weights, from the content of ``model_index.json``."""
    return {
        name: str(value[1])
        for name, value in index.items()
        if name.startswith(WEIGHTY) and isinstance(value, list) and value[0] is not None
    }


def loaded_files(names: list[str]) -> list[str]:
    """Of the weight files of a component those that are loaded: a variant only where nothing else is.

    A file in one piece is taken before shards of the same.
    """
    variant = re.compile(r"\.(fp16|bf16|fp32)(\.|-)")
    plain = [name for name in names if not variant.search(name)]
    chosen = plain or names
    whole = [name for name in chosen if not re.search(r"-\d{5}-of-\d{5}", name)]
    return sorted(whole[:1] if whole else chosen)


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


def _hub_parts(spec: ModelSpec) -> tuple[Part, ...]:
    from huggingface_hub import HfApi

    from harness.models.hub import fetch

    api = HfApi()
    index = _json(fetch(spec.repo, MODEL_INDEX, spec.revision))
    try:
        files = api.list_repo_files(spec.repo, revision=spec.revision)
        found = []
        for name, kind in weighty(index).items():
            own = [f for f in files if f.startswith(f"{name}/") and f.endswith(".safetensors")]
            heads = [
                api.parse_safetensors_file_metadata(
                    spec.repo, f"{name}/{f}", revision=spec.revision
                )
                for f in loaded_files([f.partition("/")[2] for f in own])
            ]
            found.append(
                Part(
                    name=name,
                    kind=kind,
                    parameters=sum(sum(head.parameter_count.values()) for head in heads),
                    config=_json(fetch(spec.repo, f"{name}/config.json", spec.revision)),
                )
            )
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
