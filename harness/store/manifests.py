"""Manifests of the store, read without looking at the files that they list.

An entry lies under a key that states the schema of keys it was made with. Those of an earlier
schema are never found again: they can go, but only where the manifest itself says what it is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.store.keys import SCHEMA, digest
from harness.store.store import MANIFEST, MANIFEST_SCHEMA

if TYPE_CHECKING:
    from pathlib import Path

    from harness.store.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class Outdated:
    """What a store holds that no key of this version names.

    Attributes:
        folders: Entries whose key was made with an earlier schema.
        damaged: Entries whose manifest does not say what they are, whenever they were made.
    """

    folders: tuple[Path, ...]
    damaged: tuple[Path, ...]


def sound_manifest(kind: str, key: str, folder: Path) -> dict[str, Any] | None:
    """What the manifest of an entry says.

    Returns:
        The manifest; None where it is missing, cannot be read, is of another entry, or names
        inputs that are not those of the key.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        stated = (manifest["schema"], manifest["kind"], manifest["key"], type(manifest["at"]))
        inputs = manifest["inputs"]
        sound = stated == (MANIFEST_SCHEMA, kind, key, str) and isinstance(inputs, dict)
        return manifest if sound and digest(inputs) == key else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def find_outdated(store: Store) -> Outdated:
    """Entries of a store that were made with an earlier schema of keys, and damaged ones.

    An entry whose inputs state no schema, or one that is not known yet, is in neither.
    """
    folders, damaged = [], []
    for kind, key, folder in store.entries():
        manifest = sound_manifest(kind, key, folder)
        if manifest is None:
            damaged.append(folder)
            continue
        schema = manifest["inputs"].get("schema")
        if type(schema) is int and schema < SCHEMA:
            folders.append(folder)
    return Outdated(folders=tuple(folders), damaged=tuple(damaged))
