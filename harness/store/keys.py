"""Keys: canonical JSON of declared inputs, hashed.

A key says what a stored thing was made from. Device index, worker count, folders and retries are
never part of one; what changes the bits of a result (device name, library versions, dtype, threads)
is the cohort.
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
    from harness.spec import GenSpec, ModelSpec, Prompt

SCHEMA = 1
"""Raised when the meaning of any key changes; everything stored before is then invisible."""

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Keyed:
    """A thing in the store by key, with the inputs it is made from."""

    key: str
    inputs: dict[str, Any]


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


def pool_inputs(
    *, model: ModelSpec, gen: GenSpec, suite_digest: str, seed: int, cohort: Mapping[str, Any]
) -> dict[str, Any]:
    """What a pool of recorded calibration trajectories is made from."""
    return {
        "kind": "pool",
        "schema": SCHEMA,
        "model": model_identity(model),
        "gen": plain(gen),
        "suite": suite_digest,
        "seed": seed,
        "cohort": dict(cohort),
    }


def quant_inputs(
    *,
    model: ModelSpec,
    gen: GenSpec,
    method: str,
    version: int,
    options: Mapping[str, Any],
    bits: str,
    calibration: Mapping[str, Any] | None,
    seed: int,
) -> dict[str, Any]:
    """What an artifact is made from.

    ``options`` holds every option of the method, defaults filled in. ``calibration`` is
    ``{"suite": digest, "prompts": count}``, None for data-free and reference rows.
    """
    return {
        "kind": "artifact",
        "schema": SCHEMA,
        "model": model_identity(model),
        "gen": plain(gen),
        "method": method,
        "version": version,
        "options": plain(dict(options)),
        "bits": bits,
        "calibration": None if calibration is None else dict(calibration),
        "seed": seed,
    }


def clip_inputs(
    *, quant_key: str, gen: GenSpec, prompt: Prompt, seed: int, cohort: Mapping[str, Any]
) -> dict[str, Any]:
    """What a clip is made from."""
    return {
        "kind": "clip",
        "schema": SCHEMA,
        "quant": quant_key,
        "gen": plain(gen),
        "prompt": digest(prompt.text),
        "seed": seed,
        "cohort": dict(cohort),
    }


def score_inputs(
    *,
    clip: str,
    reference: str,
    scorer: str,
    version: str,
    asked: Mapping[str, str],
    environment: Mapping[str, str],
) -> dict[str, Any]:
    """What a score is made from.

    ``clip`` and ``reference`` are digests of content, the latter empty for an unpaired scorer;
    ``asked`` holds the prompt's tags where the scorer reads them; ``environment`` holds the
    versions of the libraries that the scorer computes with.
    """
    return {
        "kind": "score",
        "schema": SCHEMA,
        "clip": clip,
        "reference": reference,
        "scorer": scorer,
        "version": version,
        "asked": dict(asked),
        "environment": dict(environment),
    }


def measure_inputs(
    *, rows: Iterable[str], gen: GenSpec, cohort: Mapping[str, Any], protocol: Mapping[str, Any]
) -> dict[str, Any]:
    """What a set of interleaved timings is made from: all rows that took turns."""
    return {
        "kind": "measure",
        "schema": SCHEMA,
        "rows": sorted(rows),
        "gen": plain(gen),
        "cohort": dict(cohort),
        "protocol": dict(protocol),
    }


def model_identity(model: ModelSpec) -> dict[str, str]:
    """What tells one model from another: revision and variant, never the folder it lies in."""
    return {"family": model.family, "revision": model.revision, "variant": model.variant}
