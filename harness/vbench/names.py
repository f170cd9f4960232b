"""File names as the official code expects them, and folders of links that bear them.

Our own files are named by ids. Only ``vbench evaluate`` in its standard mode and human_action read
anything from a name: ``{prompt}-{i}.mp4``, with i from 0.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import HarnessError
from harness.store.keys import file_digest

if TYPE_CHECKING:
    from collections.abc import Sequence

NAME_BYTES = 255
"""Longest name on the usual file systems, in bytes (NAME_MAX of Linux)."""
SUFFIX = ".mp4"
_UNSAFE = re.compile(r"[/\x00-\x1f\x7f]")
_DIGITS = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class OfficialName:
    """A file name for a clip.

    Attributes:
        exact: Whether it is ``{prompt}-{i}.mp4``; otherwise characters were replaced or the prompt
            was cut, and the official code does not find the prompt in it.
    """

    name: str
    exact: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedClip:
    """A clip that is to bear its official name.

    Attributes:
        path: The file.
        prompt: Text of the prompt.
        index: Number of the clip among those of its prompt, from 0.
    """

    path: Path
    prompt: str
    index: int


def official_name(prompt: str, index: int) -> OfficialName:
    """Name a clip as the official code does, as far as a file system allows.

    Slashes and control characters become ``_``. What was changed or is too long also gets a digest
    of the whole prompt, for two prompts must not meet in one name.
    """
    ending = f"-{index}{SUFFIX}"
    safe = _UNSAFE.sub("_", prompt)
    if safe == prompt and len((prompt + ending).encode()) <= NAME_BYTES:
        return OfficialName(name=prompt + ending, exact=True)
    mark = f"~{hashlib.sha256(prompt.encode()).hexdigest()[:_DIGITS]}"
    room = NAME_BYTES - len((mark + ending).encode())
    # A character that is cut in the middle is left out.
    kept = safe.encode()[:room].decode(errors="ignore")
    return OfficialName(name=kept + mark + ending, exact=False)


def link_folder(clips: Sequence[NamedClip], folder: Path) -> list[Path]:
    """Make the standard layout of ``vbench evaluate``: links with the official names.

    Args:
        clips: In any order; the same prompt may come twice with the same clip.
        folder: Is made; the links go into folders in it. Links of the same name are replaced.

    Returns:
        The folders that hold links, each a ``--videos_path`` of its own: one, or more where the
        file system takes prompts that differ only in case for one name.

    Raises:
        HarnessError: Two different files claim one name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    merges = merges_case(folder)
    taken: list[dict[str, tuple[str, Path]]] = []
    for clip in clips:
        name = official_name(clip.prompt, clip.index).name
        place = _place(name, clip, taken, merges=merges)
        if place is None:
            continue
        link = _part(folder, place) / name
        link.parent.mkdir(exist_ok=True)
        # By way of another name: a reader never finds the link missing. Not beside it: the official
        # code takes the file type from whatever the folder lists first.
        fresh = folder / ".fresh.link"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(clip.path.resolve())
        fresh.replace(link)
    return [_part(folder, place) for place in range(len(taken))]


def merges_case(folder: Path) -> bool:
    """Whether names that differ only in case are one name on the file system of ``folder``."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix="case-") as probe:
        path = Path(probe.name)
        return path.with_name(path.name.upper()).exists()


def _part(folder: Path, place: int) -> Path:
    return folder / f"part-{place + 1}"


def _place(
    name: str, clip: NamedClip, taken: list[dict[str, tuple[str, Path]]], *, merges: bool
) -> int | None:
    """The first part of the folder in which a name is free; None where it is there already."""
    slot = name.casefold() if merges else name
    for place, names in enumerate(taken):
        if slot not in names:
            names[slot] = (name, clip.path)
            return place
        other, path = names[slot]
        if other == name:
            if path != clip.path and file_digest(path) != file_digest(clip.path):
                raise HarnessError(
                    f"two different clips claim the name '{name}': '{path}' and '{clip.path}'",
                    "link the clips of one row and one setting at a time",
                )
            return None
    taken.append({slot: (name, clip.path)})
    return len(taken) - 1
