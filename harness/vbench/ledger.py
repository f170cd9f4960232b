"""What is written down about weight files: digests that were computed once."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.store.durable import replace_file
from harness.store.keys import file_digest
from harness.store.store import home

if TYPE_CHECKING:
    from pathlib import Path

REMEMBERED = "vbench-weights.json"


def sha256_of(path: Path) -> str:
    """sha256 of a file, read anew only when its size or time of change did."""
    known = remembered(path)
    if known:
        return known
    stat = path.stat()
    found = file_digest(path)
    entry = {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": found}
    facts = home() / "facts" / REMEMBERED
    write_json(facts, read_json(facts) | {os.path.realpath(path): entry})
    return found


def remembered(path: Path) -> str:
    """sha256 of a file as read before, or empty when it was not or the file changed since."""
    entry = read_json(home() / "facts" / REMEMBERED).get(os.path.realpath(path), {})
    stat = path.stat()
    same = (entry.get("bytes"), entry.get("mtime_ns")) == (stat.st_size, stat.st_mtime_ns)
    return str(entry["sha256"]) if same else ""


def read_json(path: Path) -> dict[str, Any]:
    """Content of a file of ours; empty where there is none.

    Raises:
        HarnessError: It cannot be read.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as cause:
        raise HarnessError(
            f"'{path}' cannot be read ({cause.__class__.__name__})", "delete it and try again"
        ) from cause
    return found


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file of ours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps(content, indent=1, sort_keys=True) + "\n")
