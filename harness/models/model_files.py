"""The files of a model, wherever they lie: names, JSON and the headers of weights, nothing more."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Protocol

from harness.errors import HarnessError
from harness.models.files import folder_names
from harness.models.weights import Header, read_header, refuse_pointer

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

MODEL_INDEX = "model_index.json"


class ModelFiles(Protocol):
    """Files of a pipeline in diffusers format."""

    @property
    def place(self) -> str:
        """What messages call the place."""

    def names(self) -> Collection[str]:
        """Path of every file in the folder, ``vae/config.json``."""

    def json(self, name: str) -> dict[str, Any]:
        """Content of a JSON file.

        Raises:
            HarnessError: It is not there, damaged, or no JSON object.
        """

    def header(self, name: str) -> Header:
        """Header of a weight file.

        Raises:
            HarnessError: It is not there or broken.
        """


class FolderFiles(ModelFiles):
    """A folder of this machine.

    Args:
        folder: Absolute path.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def place(self) -> str:
        """The folder."""
        return str(self.folder)

    def names(self) -> Collection[str]:
        """Path of every file two levels deep, which is all that a pipeline has.

        Raises:
            HarnessError: The folder cannot be read.
        """
        try:
            return folder_names(self.folder)
        except OSError as cause:
            raise HarnessError(
                f"'{self.folder}' cannot be read: {cause.strerror}", "check the folder's rights"
            ) from cause

    def json(self, name: str) -> dict[str, Any]:
        """Content of a JSON file.

        Raises:
            HarnessError: It is not there, damaged, or no JSON object.
        """
        path = self.folder / name
        if path.is_file():
            refuse_pointer(path)
        hint = "download the file again; a folder that save_pretrained writes has it"
        return read_object(path, hint)

    def header(self, name: str) -> Header:
        """Header of a weight file.

        Raises:
            HarnessError: It is not there or broken.
        """
        return read_header(self.folder / name)


def read_object(path: Path, hint: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        HarnessError: It is not there, cannot be read, or is something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as cause:
        raise HarnessError(f"'{path}' is missing", hint) from cause
    except OSError as cause:
        raise HarnessError(f"'{path}' cannot be read: {cause.strerror}", hint) from cause
    except (ValueError, RecursionError) as cause:
        raise HarnessError(
            f"'{path}' is damaged: it is no JSON ({cause.__class__.__name__})", hint
        ) from cause
    if not isinstance(found, dict):
        raise HarnessError(f"'{path}' is damaged: it holds no JSON object", hint)
    return found
