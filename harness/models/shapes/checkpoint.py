"""Checkpoints of the training stages: published whole or not at all, read without pickled code."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import torch

from harness.errors import HarnessError

if TYPE_CHECKING:
    from pathlib import Path


def publish(path: Path, state: dict[str, Any]) -> None:
    """Write a state of tensors and plain values so that a kill leaves the old or the new file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read(path: Path) -> dict[str, Any] | None:
    """Read a published state, or return None where none was published.

    Raises:
        HarnessError: the file exists but is not a state that this program wrote.
    """
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise HarnessError(
            f"checkpoint {path} cannot be read: {error}", "delete it to begin the stage again"
        ) from error
    return dict(state)


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Add one JSON line to a log."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, sort_keys=True) + "\n")


def publish_json(path: Path, value: object) -> None:
    """Write a JSON file so that a kill leaves the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(path)
