"""Keys: canonical JSON of declared inputs, hashed.

A key says what a stored thing was made from, the sources that decide it included
(``harness.store.sources``). Each stage states its own. Device index, worker count, folders and
retries are never part of one; what changes the bits of a result (device name, library versions,
dtype, threads) is the cohort.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.spec import ModelSpec, Prompt

SCHEMA = 2
"""Raised when the meaning of any key changes; everything stored before is then invisible."""

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Keyed:
    """A thing in the store by key, with the inputs it is made from."""

    key: str
    inputs: dict[str, Any]

    @classmethod
    def of(cls, kind: str, inputs: Mapping[str, Any]) -> Keyed:
        """The key of something of a kind of the store, from what it is made from."""
        whole = {"kind": kind, "schema": SCHEMA, **plain(dict(inputs))}
        return cls(key=digest(whole), inputs=whole)


def plain(value: Any) -> Any:
    """Turn a value into what JSON can hold: dataclasses to dicts, tuples to lists, paths to text.

    Raises:
        TypeError: The value has no canonical form.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise TypeError(f"a {type(value).__name__} has no canonical form")


def canonical(value: Any) -> str:
    """The one JSON text of a value: sorted names, no spaces, no NaN."""
    return json.dumps(
        plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def digest(value: Any) -> str:
    """sha256 of the canonical JSON of ``value``, in hex."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            sha.update(chunk)
    return sha.hexdigest()


def prompts_digest(prompts: Iterable[Prompt]) -> str:
    """Digest of a suite: its prompts in order."""
    return digest([[p.id, p.text, [list(tag) for tag in p.tags]] for p in prompts])


def noise_seed(prompt: Prompt, seed: int) -> int:
    """Seed of the initial noise of one clip: the same for every method, different for every prompt.

    The prompts are the units of the statistics, so they must not share one noise.
    """
    return int(digest([prompt.text, seed])[:8], 16)


def model_identity(model: ModelSpec) -> dict[str, str]:
    """What tells one model from another: revision and variant, never the folder it lies in."""
    return {"family": model.family, "revision": model.revision, "variant": model.variant}
