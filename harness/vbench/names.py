"""File names as the official code expects them.

Our own files are named by ids. Only ``vbench evaluate`` in its standard mode and human_action read
anything from a name: ``{prompt}-{i}.mp4``, with i from 0.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

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
