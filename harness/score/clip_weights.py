"""The CLIP checkpoint on this machine: fetched by a command, named in every score, never by a run.

``$HARNESS_HOME/clip-weights.json`` says where it lies and what its files hold. Which commit of the
hub it is, is locked when it is first fetched. Importing this module needs no torch.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from harness.errors import HarnessError, InfraError, UsageError
from harness.store.durable import replace_file
from harness.store.keys import digest, file_digest
from harness.store.store import home, now

REPO = "openai/clip-vit-base-patch32"  # what EvalCrafter's script Scores_with_CLIP.py loads
RECORD = "clip-weights.json"
COMMAND = "harness fetch clip-weights"
CONFIG = "config.json"
_VOCABULARY = ("vocab.json", "merges.txt")
_TOKENIZER = "tokenizer.json"
_SMALL = (CONFIG, *_VOCABULARY, _TOKENIZER, "tokenizer_config.json", "special_tokens_map.json")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that there is


def clip_missing() -> str:
    """Why CLIP cannot score, in one line with the command; empty where it can.

    Looks at the files' sizes only; ``check_clip_files`` reads them.
    """
    held = _record()
    if not held:
        return f"CLIP weights were not fetched: {COMMAND}"
    for name, facts in held["files"].items():
        path = Path(held["folder"]) / name
        if not path.is_file():
            return f"CLIP weights: '{path}' is gone: {COMMAND}"
        if path.stat().st_size != facts["bytes"]:
            return f"CLIP weights: '{path}' has changed: {COMMAND}"
    return ""


def clip_identity() -> str:
    """Digest over the files of the checkpoint, for keys of scores; empty where there is none."""
    held = _record()
    return digest({name: facts["sha256"] for name, facts in held["files"].items()}) if held else ""


def clip_about() -> str:
    """The checkpoint in words, for records; empty where there is none."""
    held = _record()
    if not held:
        return ""
    return f"{REPO} at {held['revision'][:12]}" if held["revision"] else f"CLIP {held['folder']}"


def clip_folder() -> Path:
    """Where the checkpoint lies.

    Raises:
        InfraError: It was not fetched, or a file is gone or has another size.
    """
    reason = clip_missing()
    if reason:
        raise InfraError(reason.removesuffix(f": {COMMAND}"), COMMAND)
    return Path(_record()["folder"])


def check_clip_files() -> None:
    """Read the checkpoint's files and hold them against what was recorded.

    Raises:
        InfraError: A file is not the one that the keys of scores name.
    """
    folder = clip_folder()
    for name, facts in _record()["files"].items():
        if file_digest(folder / name) != facts["sha256"]:
            raise InfraError(f"'{folder / name}' is not the file that was fetched", COMMAND)


def fetch_clip(folder: Path | None = None) -> str:
    """Fetch the checkpoint or register one that is there; fetching again changes nothing.

    Args:
        folder: A checkpoint in the layout of transformers; None for the hub's, of which the hub
            client downloads what its cache does not hold.

    Returns:
        One line: what it is and where.

    Raises:
        HarnessError: The hub cannot be reached, or the folder holds no CLIP checkpoint.
    """
    revision = ""
    if folder is None:
        folder, revision = _download()
    folder = folder.expanduser().absolute()
    names = _names(folder)
    files = {
        name: {"sha256": file_digest(folder / name), "bytes": (folder / name).stat().st_size}
        for name in names
    }
    held = {"folder": str(folder), "revision": revision, "files": files, "at": now()}
    home().mkdir(parents=True, exist_ok=True)
    replace_file(home() / RECORD, json.dumps(held, indent=1, sort_keys=True) + "\n")
    size_mb = sum((folder / name).stat().st_size for name in names) / 1e6
    return f"{clip_about()}, {size_mb:.0f} MB: {folder}"


def _names(folder: Path) -> tuple[str, ...]:
    """The files of a checkpoint that a score depends on.

    Raises:
        UsageError: Something is missing.
    """
    there = [name for name in _SMALL if (folder / name).is_file()]
    weights = [name for name in _WEIGHTS if (folder / name).is_file()][:1]
    tokenizer = _TOKENIZER in there or set(_VOCABULARY) <= set(there)
    if not (weights and tokenizer and CONFIG in there):
        needs = f"{CONFIG}, {' or '.join(_WEIGHTS)}, {_TOKENIZER} or {' and '.join(_VOCABULARY)}"
        raise UsageError(f"'{folder}' holds no CLIP checkpoint", f"it needs {needs}")
    return (*there, *weights)


def _download() -> tuple[Path, str]:
    """Folder and commit of the hub's checkpoint, downloaded where the cache has it not."""
    from harness.models.hub import fetch

    locked = _record().get("revision", "")
    revision = locked or fetch(REPO, CONFIG).parent.name  # the cache keeps snapshots by commit
    if re.fullmatch("[0-9a-f]{40}", revision) is None:
        raise HarnessError(
            f"the hub names no commit for '{REPO}': '{revision}'",
            f"download it and give the folder: {COMMAND} --from FOLDER",
        )
    for name in _SMALL:
        folder = fetch(REPO, name, revision).parent
    _fetch_weights(revision)
    return folder, revision


def _fetch_weights(revision: str) -> None:
    """Download the weights in the first form that the commit has."""
    from huggingface_hub.errors import EntryNotFoundError

    from harness.models.hub import fetch

    for name in _WEIGHTS:
        try:
            fetch(REPO, name, revision)
        except HarnessError as cause:
            if not isinstance(cause.__cause__, EntryNotFoundError) or name == _WEIGHTS[-1]:
                raise
        else:
            return


def _record() -> dict[str, Any]:
    """What was fetched; empty where nothing was.

    Raises:
        HarnessError: The record cannot be read.
    """
    path = home() / RECORD
    if not path.is_file():
        return {}
    try:
        held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as cause:
        raise HarnessError(f"'{path}' cannot be read", f"delete it, then {COMMAND}") from cause
    return held
