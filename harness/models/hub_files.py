"""The files of a repository of the hub at one commit: small JSON is downloaded, headers are asked.

What is known of the weights at a commit never changes, so it is kept in
``$HARNESS_HOME/hub-headers``; without network the snapshot in the hub's cache stands in.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from harness.models.hub import fetch, unreachable
from harness.models.model_files import MODEL_INDEX, FolderFiles, ModelFiles, read_object
from harness.models.repository import file_list
from harness.models.weights import Header, width_of
from harness.store.durable import replace_file
from harness.store.store import home

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

FACTS = "hub-headers"


class HubFiles(ModelFiles):
    """A repository at a commit.

    Args:
        repo: ``owner/name``.
        revision: The commit.
    """

    def __init__(self, repo: str, revision: str) -> None:
        self.repo, self.revision = repo, revision
        self._path = home() / FACTS / f"{repo.replace('/', '--')}@{revision}.json"
        self._held = _kept(self._path)

    @property
    def place(self) -> str:
        """The repository."""
        return self.repo

    @property
    def listed(self) -> bool:
        """Whether it is known what the repository holds, and not only what the cache does."""
        return file_list(self.repo, self.revision) is not None

    def names(self) -> Collection[str]:
        """Path of every file, of those in the cache where the hub cannot be asked.

        Raises:
            HarnessError: Neither knows the repository.
        """
        found = file_list(self.repo, self.revision)
        return self._snapshot().names() if found is None else found

    def json(self, name: str) -> dict[str, Any]:
        """Content of a JSON file.

        Raises:
            HarnessError: It is neither on the hub nor in the cache, or is damaged.
        """
        return read_object(fetch(self.repo, name, self.revision), "delete it and try again")

    def header(self, name: str) -> Header:
        """Header of a weight file; the names of its tensors are not kept.

        Raises:
            HarnessError: The hub cannot be asked and the cache does not have the file.
        """
        if name not in self._held:
            try:
                self._held[name] = _parameters(self.repo, name, self.revision)
            except Exception as cause:  # the client lets errors of its HTTP library through
                local = self._snapshot()
                if name in local.names():
                    return local.header(name)
                raise unreachable(f"{self.repo}/{name}", cause) from cause
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._path, json.dumps(self._held, indent=1, sort_keys=True) + "\n")
        parameters = self._held[name]
        size = sum(count * width_of(kind) for kind, count in parameters.items())
        return Header(tensors=frozenset(), parameters=parameters, size=int(size))

    def _snapshot(self) -> FolderFiles:
        """What the hub's cache holds of the repository."""
        return FolderFiles(fetch(self.repo, MODEL_INDEX, self.revision).parent)


def _kept(path: Path) -> dict[str, dict[str, int]]:
    """What was asked before; nothing where that cannot be read, since it can be asked again."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        whole = all(isinstance(count, int) for held in found.values() for count in held.values())
    except (OSError, ValueError, AttributeError):
        return {}
    return dict(found) if whole else {}


def _parameters(repo: str, name: str, revision: str) -> dict[str, int]:
    from huggingface_hub import HfApi

    head = HfApi().parse_safetensors_file_metadata(repo, name, revision=revision)
    return {str(kind): int(count) for kind, count in head.parameter_count.items()}
