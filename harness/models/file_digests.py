"""Digests of weight files that are remembered: a model of 40 GB is not read again at each command.

A digest counts as long as size, times and inode of the file are those it was taken at; the time of
the last change of the inode cannot be set back by copying.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

from harness.store.durable import replace_file
from harness.store.keys import file_digest
from harness.store.store import home

if TYPE_CHECKING:
    from pathlib import Path

REMEMBERED = "file-digests.json"
LARGE_BYTES = 16 << 20  # smaller files are read in the time that looking them up takes


def remembered_digest(path: Path) -> str:
    """sha256 of a file's bytes, in hex; of a large file that has not changed, from memory."""
    about = path.stat()
    if about.st_size < LARGE_BYTES:
        return file_digest(path)
    place, name = home() / REMEMBERED, str(path.resolve())
    mark = [about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino]
    held = _read(place).get(name)
    if isinstance(held, list) and held[:-1] == mark and isinstance(held[-1], str):
        return held[-1]
    found = file_digest(path)
    with contextlib.suppress(OSError):  # only time is lost where it cannot be written
        place.parent.mkdir(parents=True, exist_ok=True)
        # read again: another command may have written meanwhile
        replace_file(place, json.dumps({**_read(place), name: [*mark, found]}, indent=1) + "\n")
    return found


def _read(place: Path) -> dict[str, Any]:
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
