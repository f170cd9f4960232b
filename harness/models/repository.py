"""Downloading what a stage reads of a model on the hub, and no more; a killed download goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.models.files import (
    PARTS,
    TEXT,
    choose_weights,
    components,
    files_of,
    folder_names,
    has_weights,
    part_of,
    shards_of,
)
from harness.store.durable import DISK_FULL, replace_file
from harness.store.store import home

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

LISTS = "hub-files"
_MODEL_INDEX = "model_index.json"
_NETWORK_FILES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx")


def download(
    repo: str, revision: str, *, parts: Collection[str] = PARTS, dtype: str = "bfloat16"
) -> Path:
    """Bring the files that a stage reads into the hub's cache, or find them there.

    Args:
        repo: Hub id.
        revision: Commit.
        parts: As ``load_pipeline`` takes them.
        dtype: What the weights are loaded in; it chooses among variants.

    Returns:
        Folder of the snapshot in the cache.

    Raises:
        HarnessError: The hub cannot be asked and the cache does not hold the files; or the
            repository holds no weights that could be loaded.
    """
    listed = file_list(repo, revision)
    # whoever cannot ask has what was loaded before
    names = folder_names(_snapshot(repo, revision, None)) if listed is None else listed
    folder = _snapshot(repo, revision, [_MODEL_INDEX])
    index: dict[str, Any] = json.loads((folder / _MODEL_INDEX).read_text(encoding="utf-8"))
    wanted = needed(names, index, parts=parts, dtype=dtype)
    folder = _snapshot(repo, revision, wanted)
    shards = [
        f"{name.rpartition('/')[0]}/{shard}"
        for name in wanted
        if ".safetensors.index" in name
        for shard in shards_of(folder / name)
    ]
    return _snapshot(repo, revision, shards) if shards else folder


def needed(
    names: Collection[str], index: Mapping[str, Any], *, parts: Collection[str], dtype: str
) -> list[str]:
    """The files that are read of a repository, indexes of shards in the place of the shards.

    Args:
        names: All its files.
        index: Content of ``model_index.json``.
        parts: As ``load_pipeline`` takes them.
        dtype: As in ``choose_weights``.

    Raises:
        HarnessError: A component that is wanted has no weights that could be loaded.
    """
    wanted = [_MODEL_INDEX]
    for component, (library, _) in components(index).items():
        part, own = part_of(component), files_of(names, component)
        if part is None or (part == TEXT and TEXT not in parts):
            continue
        if not has_weights(component):
            wanted += [f"{component}/{name}" for name in own if not name.endswith(_NETWORK_FILES)]
            continue
        wanted.append(f"{component}/config.json")
        if part in parts:
            wanted.append(f"{component}/{choose_weights(own, component, library, dtype).file}")
    return wanted


def file_list(repo: str, revision: str) -> tuple[str, ...] | None:
    """Paths of a repository's files at a commit: asked once on this machine, then kept.

    Returns:
        None where they are not kept yet and the hub cannot be asked.
    """
    from huggingface_hub import HfApi

    path = home() / LISTS / f"{repo.replace('/', '--')}@{revision}.json"
    try:
        return tuple(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        pass  # not kept, or damaged: ask
    try:
        names = sorted(HfApi().list_repo_files(repo, revision=revision or None))
    except Exception:  # the client lets errors of its HTTP library through
        return None
    if revision:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(names, indent=1) + "\n")
    return tuple(names)


def _snapshot(repo: str, revision: str, names: list[str] | None) -> Path:
    """Have the client bring files into its cache; None for what is there already."""
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                repo,
                revision=revision or None,
                allow_patterns=names,
                local_files_only=names is None,
            )
        )
    except Exception as cause:  # the client lets errors of its HTTP library through
        if isinstance(cause, OSError) and cause.errno in DISK_FULL:
            raise
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise HarnessError(
            f"'{repo}' cannot be downloaded: {reason}",
            "check the network and run the same command again: it goes on where it stopped",
        ) from cause
