"""An artifact as it lies on the disk: writing it, and reading its parts without a model.

A folder with ``artifact.json`` (per layer: widths, grids, transforms, activation quantizer) and
tensor files (packed codes, steps, transforms, and every parameter that stays in high precision).
Nothing is pickled. A parameter that stays is stored in 16 bits where that is exact, else as it is,
so that a saved and loaded model computes the same bits as the one that was saved.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from harness.errors import HarnessError
from harness.models.experts import WanExperts
from harness.models.families.parts import parts_of
from harness.quant.layers.layers import (
    QuantizedLayer,
    compact,
    dtype_name,
    layer_class,
    quantized_layers,
)
from harness.quant.layers.policy import stored_policy
from harness.quant.layers.shards import WEIGHTS, ShardWriter, StoredTensors, damaged

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor, nn

SCHEMA, SHARDED = 1, 2
"""Of an artifact with one tensor file, and of one with several; both are read."""

MANIFEST = "artifact.json"
MODEL_CONFIG = "model_config"


def save_artifact(transformer: nn.Module, folder: Path, about: dict[str, Any]) -> None:
    """Write a quantized transformer, at most a shard of it copied at a time.

    Args:
        transformer: Holds quantized layers.
        folder: Existing folder.
        about: JSON facts to keep in the manifest (model, method, options, seed).
    """
    layers = quantized_layers(transformer)
    manifest: dict[str, Any] = {"schema": SCHEMA, **about, "layers": {}, "kept_dtypes": {}}
    if (config := model_config(transformer)) is not None:
        manifest[MODEL_CONFIG] = config
    writer = _Sharing(ShardWriter(folder))
    for name, layer in layers.items():
        manifest["layers"][name] = {"kind": layer.kind, **layer.describe()}
        for key, value in layer.stored().items():
            writer.add(f"{name}.{key}", value)
    inside = tuple(f"{name}." for name in layers)
    for name, value in transformer.state_dict().items():
        if not name.startswith(inside):
            writer.add(name, compact(value))
            manifest["kept_dtypes"][name] = dtype_name(value)
    if (policy := stored_policy(transformer)) is not None:
        manifest["step_policy"] = policy
    manifest["shared"] = writer.shared
    files = writer.writer.finish()
    if len(files) > 1:
        manifest |= {"schema": SHARDED, "files": list(files)}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")


def open_artifact(folder: Path) -> tuple[dict[str, Any], StoredTensors]:
    """Manifest and tensors of an artifact; no tensor is read yet.

    Raises:
        HarnessError: The folder is no artifact, has another schema, or its files are not whole.
    """
    manifest = read_manifest(folder)
    return manifest, StoredTensors(folder, tensor_files(manifest), manifest.get("shared", {}))


def stored_layer(
    name: str, manifest: dict[str, Any], tensors: StoredTensors
) -> tuple[QuantizedLayer, dict[str, Tensor]]:
    """Rebuild one quantized layer of an artifact; also its tensors as they are stored.

    Raises:
        HarnessError: What is stored is no such layer, or needs a library that is not here.
    """
    facts = manifest["layers"][name]
    parts = tensors.under(f"{name}.")
    try:
        return layer_class(facts.get("kind", "linear")).rebuild(facts, parts), parts
    except HarnessError:
        raise
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as cause:
        what = str(cause).strip().splitlines()[:1] or [type(cause).__name__]
        raise damaged(tensors.folder, f"is damaged at layer '{name}': {what[0]}") from cause


def stored_layers(folder: Path) -> Iterator[tuple[str, QuantizedLayer]]:
    """Rebuild the quantized layers of an artifact one by one, without a model.

    Raises:
        HarnessError: The folder is no artifact or has another schema.
    """
    manifest, tensors = open_artifact(folder)
    for name in manifest["layers"]:
        yield name, stored_layer(name, manifest, tensors)[0]


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of an artifact folder.

    Raises:
        HarnessError: The folder is no artifact or has another schema.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        parts = [manifest["layers"], manifest["kept_dtypes"]] if "schema" in manifest else []
        if not all(isinstance(part, dict) for part in (manifest, *parts)):
            raise ValueError("no such manifest")
    except (OSError, ValueError, KeyError, TypeError) as cause:
        raise HarnessError(
            f"'{folder}' is not an artifact ({cause.__class__.__name__})",
            f"give a folder that holds {MANIFEST} and {WEIGHTS}",
        ) from cause
    if manifest.get("schema") not in (SCHEMA, SHARDED):
        raise HarnessError(
            f"artifact '{folder}' has schema {manifest.get('schema')}, this version reads "
            f"{SCHEMA} and {SHARDED}",
            "quantize again with this version",
        )
    return manifest


def tensor_files(manifest: dict[str, Any]) -> tuple[str, ...]:
    """Names of the tensor files of an artifact."""
    return tuple(str(name) for name in manifest.get("files", (WEIGHTS,)))


def artifact_bytes(folder: Path) -> int:
    """Bytes on disk of everything the loader needs."""
    names = (MANIFEST, *tensor_files(read_manifest(folder)))
    return sum((folder / name).stat().st_size for name in names)


def model_config(transformer: Any) -> dict[str, Any] | None:
    """What a denoiser was built with, as JSON has it.

    Returns:
        Config of a diffusers model, None for another module. Of experts: the ``boundary`` between
        them, and the config of each by name under ``experts``.
    """
    if isinstance(transformer, WanExperts):
        experts = {name: model_config(part) for name, part in parts_of(transformer).items()}
        return {"boundary": transformer.boundary, "experts": experts}
    if not hasattr(transformer, "to_json_string"):
        return None
    found: dict[str, Any] = json.loads(transformer.to_json_string())
    return {k: v for k, v in found.items() if not k.startswith("_")}


_SHARED = (".low_rank.down", ".transforms.")
"""Tensors that linears with one input may have in common."""


class _Sharing:
    """Leaves out transforms and down-projections that equal an earlier one."""

    def __init__(self, writer: ShardWriter) -> None:
        self.writer = writer
        self.shared: dict[str, str] = {}
        self._seen: dict[tuple[torch.Size, torch.dtype], list[tuple[str, Tensor]]] = {}

    def add(self, name: str, value: Tensor) -> None:
        """Write a tensor, or note which one it equals."""
        if any(part in name for part in _SHARED):
            alike = self._seen.setdefault((value.shape, value.dtype), [])
            for first, earlier in alike:
                if torch.equal(earlier, value):
                    self.shared[name] = first
                    return
            alike.append((name, value))
        self.writer.add(name, value)
