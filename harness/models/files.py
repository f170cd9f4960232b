"""Which files of a pipeline in diffusers format a run reads: one form of the weights it needs.

Repositories hold more: the same weights at other widths (variants), pickles beside safetensors,
checkpoints of one file for other programs, components that text-to-video does not use.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

TEXT, DENOISER, DECODER = "text", "denoiser", "decoder"
PARTS = (TEXT, DENOISER, DECODER)
"""The parts of a pipeline that hold weights; a stage of a run loads those that it uses."""

_PART_OF = {
    "text_encoder": TEXT,
    "tokenizer": TEXT,
    "transformer": DENOISER,
    "vae": DECODER,
}
# Of image-to-video and of filters; and language models that write the prompt anew, which would be
# another text than the suite's. Pipelines that read text take None for them.
_UNNEEDED = (
    "image_encoder",
    "image_processor",
    "feature_extractor",
    "safety_checker",
    "prompt_enhancer",
)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_BITS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
# Own width first. Then float32, of which both halves are roundings; a float16 value is nearer to
# its float32 original than a bfloat16 one.
_NEAREST = {
    "float32": ("fp32", "fp16", "bf16"),
    "bfloat16": ("bf16", "fp32", "fp16"),
    "float16": ("fp16", "fp32", "bf16"),
}


def part_of(component: str) -> str | None:
    """The part that a component of a pipeline belongs to.

    Returns:
        One of ``PARTS``; empty for what is small and always loaded, such as the scheduler; None for
        what no text-to-video run uses.
    """
    stem = re.sub(r"_\d+$", "", component)
    if stem.startswith(_UNNEEDED):
        return None
    return _PART_OF.get(stem, "")


def has_weights(component: str) -> bool:
    """Whether a component is a network that a run may load."""
    return bool(part_of(component)) and not component.startswith("tokenizer")


def components(index: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Library and class of each component that a ``model_index.json`` names.

    Args:
        index: Its content.
    """
    found = {}
    for name, value in index.items():
        is_pair = isinstance(value, list | tuple) and len(value) == 2
        if not name.startswith("_") and is_pair and all(isinstance(part, str) for part in value):
            found[name] = (value[0], value[1])
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """One form of a component's weights.

    Attributes:
        variant: What stands in the files' names for their width (``fp16``), empty for none.
        file: The file that holds all, or the index of the shards.
        sharded: Whether ``file`` is an index.
    """

    variant: str
    file: str
    sharded: bool


def choose_weights(
    names: Iterable[str], component: str, library: str, dtype: str = "bfloat16"
) -> Form:
    """Choose the form of a component's weights that is loaded.

    The one without a variant where there is one; else the variant whose width is nearest to the
    computing dtype.

    Args:
        names: Files of the component's folder.
        component: Its name.
        library: Library of its class, which decides how weights are called.
        dtype: ``float32``, ``bfloat16`` or ``float16``.

    Raises:
        HarnessError: There are no weights, or only pickles, or no way to choose.
    """
    names = sorted(names)
    forms = _forms(names, "diffusion_pytorch_model" if library == "diffusers" else "model")
    # each library looks for one of the two first
    first = library == "diffusers"
    forms.sort(key=lambda form: form.sharded is not first)
    for variant in ("", *_NEAREST[dtype]):
        for form in forms:
            if form.variant == variant:
                return form
    variants = sorted({form.variant for form in forms})
    if len(variants) == 1:
        return forms[0]
    if variants:
        raise HarnessError(
            f"component '{component}' has weights only as variants {', '.join(variants)}, none of "
            f"which is a width ({', '.join(_BITS)})",
            "keep the files of the one that is meant in a copy of the folder",
        )
    raise _no_weights(names, component, library)


def _forms(names: Iterable[str], stem: str) -> list[Form]:
    whole = re.compile(rf"{stem}(?:\.([\w-]+))?\.safetensors")
    index = re.compile(rf"{stem}\.safetensors\.index(?:\.([\w-]+))?\.json")
    found = []
    for name in names:
        for pattern, sharded in ((whole, False), (index, True)):
            if match := pattern.fullmatch(name):
                found.append(Form(variant=match[1] or "", file=name, sharded=sharded))
    return found


def _no_weights(names: Collection[str], component: str, library: str) -> HarnessError:
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles:
        return HarnessError(
            f"component '{component}' has only pickled weights ('{pickles[0]}'), which run code "
            "when they are opened",
            "where you trust them, load the component once with its class and "
            f"use_safetensors=False and save_pretrained('{component}')",
        )
    shards = [name for name in names if re.search(r"-\d+-of-\d+.*\.safetensors$", name)]
    if shards:
        return HarnessError(
            f"component '{component}' has shards of weights ('{shards[0]}') without their index",
            "download the missing .safetensors.index.json",
        )
    form = "diffusion_pytorch_model" if library == "diffusers" else "model"
    return HarnessError(
        f"component '{component}' has no weights ('{form}.safetensors')",
        "download the folder again, or save the model with save_pretrained",
    )


def shards_of(index_file: Path) -> list[str]:
    """Names of the shards that an index of weights names.

    Raises:
        HarnessError: It cannot be read.
    """
    try:
        return sorted(
            set(json.loads(index_file.read_text(encoding="utf-8"))["weight_map"].values())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as cause:
        raise HarnessError(
            f"the index of shards '{index_file}' cannot be read ({type(cause).__name__})",
            "download it again",
        ) from cause


def files_of(names: Iterable[str], component: str) -> list[str]:
    """Those of a list of paths that lie in a component's folder, without it."""
    start = f"{component}/"
    own = (name.removeprefix(start) for name in names if name.startswith(start))
    return [name for name in own if "/" not in name]


def folder_names(folder: Path) -> list[str]:
    """Paths of a folder's files and of those in its folders, relative to it."""
    return sorted(
        path.relative_to(folder).as_posix()
        for pattern in ("*", "*/*")
        for path in folder.glob(pattern)
        if path.is_file()
    )


def weight_files(
    folder: Path, component: str, library: str, dtype: str = "bfloat16"
) -> tuple[Path, ...]:
    """The files of a component's weights that are loaded.

    Args:
        folder: Of the pipeline.
        component: Its name.
        library: Library of its class.
        dtype: As in ``choose_weights``.

    Raises:
        HarnessError: As ``choose_weights``; or a shard is missing.
    """
    own = folder / component
    names = [path.name for path in own.iterdir() if path.is_file()] if own.is_dir() else []
    chosen = choose_weights(names, component, library, dtype)
    shards = shards_of(own / chosen.file) if chosen.sharded else [chosen.file]
    missing = [name for name in shards if name not in names]
    if missing:
        raise HarnessError(
            f"component '{component}' lacks {len(missing)} of its {len(shards)} files of weights "
            f"('{missing[0]}')",
            "download the folder again",
        )
    return tuple(own / name for name in shards)
