"""The artifact: what a method leaves behind, loadable without the method.

A folder with ``artifact.json`` (per layer: widths, grids, transforms, activation quantizer) and
``weights.safetensors`` (packed codes, steps, transforms, and every parameter that stays in high
precision). Nothing is pickled. A parameter that stays is stored in 16 bits where that is exact,
else as it is, so that a saved and loaded model computes the same bits as the one that was saved.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from harness.errors import HarnessError
from harness.models.families.fold import restore_modulation_scales_
from harness.quant.layers.layers import (
    compact,
    dtype_name,
    layer_class,
    quantized_layers,
    replace_module_,
)
from harness.quant.layers.policy import attach_policy_, build_policy, policy_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from diffusers import DiffusionPipeline
    from torch import Tensor, nn

    from harness.quant.layers.layers import QuantizedLayer

SCHEMA = 1
MANIFEST = "artifact.json"
WEIGHTS = "weights.safetensors"


def save_artifact(transformer: nn.Module, folder: Path, about: dict[str, Any]) -> None:
    """Write a quantized transformer.

    Args:
        transformer: Holds ``QuantLinear`` modules.
        folder: Existing folder.
        about: JSON facts to keep in the manifest (model, method, options, seed).
    """
    layers = quantized_layers(transformer)
    tensors: dict[str, Tensor] = {}
    manifest: dict[str, Any] = {"schema": SCHEMA, **about, "layers": {}, "kept_dtypes": {}}
    for name, layer in layers.items():
        manifest["layers"][name] = {"kind": layer.kind, **layer.describe()}
        tensors |= {f"{name}.{key}": value for key, value in layer.stored().items()}
    inside = tuple(f"{name}." for name in layers)
    for name, value in transformer.state_dict().items():
        if not name.startswith(inside):
            tensors[name] = compact(value)
            manifest["kept_dtypes"][name] = dtype_name(value)
    policy = policy_of(transformer)
    if policy is not None:
        manifest["step_policy"] = {"kind": policy.kind, "facts": policy.facts()}
    manifest["shared"] = _share_(tensors)
    save_file({k: v.contiguous().cpu() for k, v in tensors.items()}, folder / WEIGHTS)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")


def load_artifact_(transformer: nn.Module, folder: Path) -> dict[str, Any]:
    """Turn a full-precision transformer into the quantized one, in place.

    Args:
        transformer: The model the artifact was made from.
        folder: Artifact folder.

    Returns:
        The manifest.

    Raises:
        HarnessError: The folder is no artifact, has another schema, or fits another architecture.
    """
    manifest = read_manifest(folder)
    device = next(transformer.parameters()).device
    tensors = _read(folder, manifest)
    for name, facts in manifest["layers"].items():
        try:
            linear = transformer.get_submodule(name)
        except AttributeError as cause:
            raise _mismatch(folder, f"has no layer '{name}'") from cause
        if (shape := list(facts["shape"])) != list(getattr(linear, "weight", torch.empty(0)).shape):
            raise _mismatch(folder, f"has another shape than {shape} at '{name}'")
        parts = {k: tensors[f"{name}.{k}"] for k in _keys_under(f"{name}.", tensors)}
        layer = layer_class(facts.get("kind", "linear")).rebuild(facts, parts)
        replace_module_(transformer, name, layer.to(device))
    kept = {
        name: tensors[name].to(getattr(torch, dtype))
        for name, dtype in manifest["kept_dtypes"].items()
    }
    restore_modulation_scales_(transformer, kept)
    layers = tuple(f"{name}." for name in manifest["layers"])
    expected = {n for n in transformer.state_dict() if not n.startswith(layers)}
    if expected != set(kept):
        raise _mismatch(folder, f"differs in {sorted(expected ^ set(kept))[:3]}")
    transformer.load_state_dict(kept, strict=False)
    if "step_policy" in manifest:
        policy = manifest["step_policy"]
        attach_policy_(transformer, build_policy(policy["kind"], policy["facts"]))
    return manifest


def stored_layers(folder: Path) -> Iterator[tuple[str, QuantizedLayer]]:
    """Rebuild the quantized layers of an artifact one by one, without a model.

    Raises:
        HarnessError: The folder is no artifact or has another schema.
    """
    manifest = read_manifest(folder)
    shared: dict[str, str] = manifest.get("shared", {})
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        held = [*file.keys(), *shared]
        for name, facts in manifest["layers"].items():
            keys = [k for k in held if k.startswith(f"{name}.")]
            parts = {k.removeprefix(f"{name}."): file.get_tensor(shared.get(k, k)) for k in keys}
            yield name, layer_class(facts.get("kind", "linear")).rebuild(facts, parts)


def load_quantized(pipeline: DiffusionPipeline, artifact: str | Path) -> DiffusionPipeline:
    """Put an artifact into a diffusers pipeline, in place: all that a user of the model needs.

    Args:
        pipeline: The full-precision pipeline the artifact was made from.
        artifact: Artifact folder.

    Returns:
        The same pipeline, its denoiser quantized.

    Raises:
        HarnessError: The folder is no artifact, or belongs to another model.
    """
    load_artifact_(pipeline.transformer, Path(artifact))
    return pipeline


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of an artifact folder.

    Raises:
        HarnessError: The folder is no artifact or has another schema.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as cause:
        raise HarnessError(
            f"'{folder}' is not an artifact ({cause.__class__.__name__})",
            f"give a folder that holds {MANIFEST} and {WEIGHTS}",
        ) from cause
    if manifest.get("schema") != SCHEMA:
        raise HarnessError(
            f"artifact '{folder}' has schema {manifest.get('schema')}, this version reads {SCHEMA}",
            "quantize again with this version",
        )
    return manifest


def artifact_bytes(folder: Path) -> int:
    """Bytes on disk of everything the loader needs."""
    return sum((folder / name).stat().st_size for name in (MANIFEST, WEIGHTS))


def _mismatch(folder: Path, what: str) -> HarnessError:
    return HarnessError(
        f"artifact '{folder}' does not fit this model: the model {what}",
        "load it into the model named in its artifact.json",
    )


_SHARED = (".low_rank.down", ".transforms.")
"""Tensors that linears with one input may have in common."""


def _share_(tensors: dict[str, Tensor]) -> dict[str, str]:
    """Drop transforms and down-projections that equal an earlier one; return its name by theirs."""
    kept: list[str] = []
    shared: dict[str, str] = {}
    for name in [n for n in tensors if any(part in n for part in _SHARED)]:
        own = tensors[name]
        same = (k for k in kept if tensors[k].dtype == own.dtype and torch.equal(tensors[k], own))
        if (first := next(same, None)) is None:
            kept.append(name)
        else:
            shared[name] = first
            del tensors[name]
    return shared


def _read(folder: Path, manifest: dict[str, Any]) -> dict[str, Tensor]:
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (it is no dict)
    return tensors | {name: tensors[first] for name, first in manifest.get("shared", {}).items()}


def _keys_under(prefix: str, tensors: dict[str, Tensor]) -> list[str]:
    return [key.removeprefix(prefix) for key in tensors if key.startswith(prefix)]
