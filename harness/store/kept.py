"""What a calibration has finished, by name, in a folder that outlives its process.

Importing this module needs no torch.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from typing import TYPE_CHECKING, Any

from harness.store.durable import replace_file
from harness.store.nest import read_nest, write_nest

if TYPE_CHECKING:
    from pathlib import Path

    import torch

_SUFFIX = ".safetensors"
_CLOCK = "clock.json"


class Kept:
    """A folder of finished parts; each is written whole or not at all.

    Args:
        folder: Existing folder, empty at the first attempt.

    Attributes:
        folder: The folder; a walk over blocks has a folder of its own in it.
        seconds_before: Seconds of work of the attempts that were ended, up to their last part.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seconds_before = _seconds(folder / _CLOCK)
        self._started = time.monotonic()
        self._begun: set[str] = set()

    def part(self, name: str) -> Path:
        """A folder for what is no single file, the same at every attempt.

        Raises:
            ValueError: It was given out before: two owners would write over each other.
        """
        folder = self._path(name).with_suffix("")
        if folder.name in self._begun:
            raise ValueError(f"two parts of a calibration are called '{name}'")
        self._begun.add(folder.name)
        folder.mkdir(exist_ok=True)
        return folder

    def load(self, name: str, device: torch.device) -> Any:
        """The part of that name, None where there is none; a damaged one is said and not used.

        Args:
            name: What it was saved as.
            device: Where tensors go that did not lie on the CPU.
        """
        path = self._path(name)
        try:
            return read_nest(path, device)["part"]
        except FileNotFoundError:
            return None
        except ValueError as cause:
            print(f"warning: {cause}; it is made again", file=sys.stderr, flush=True)
            return None

    def save(self, name: str, value: Any) -> None:
        """Write a part durably: tensors, numbers, text, and lists, tuples and dicts of those.

        Raises:
            TypeError: The value holds anything else.
        """
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_nest(path, {"part": value})
        self.tick()

    def tick(self) -> None:
        """Remember how long the work took up to here."""
        spent = self.seconds_before + time.monotonic() - self._started
        replace_file(self.folder / _CLOCK, json.dumps({"seconds": spent}) + "\n")
        os.utime(self.folder)

    def _path(self, name: str) -> Path:
        return self.folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '-', name)}{_SUFFIX}"


def _seconds(path: Path) -> float:
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0
