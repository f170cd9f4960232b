"""The artifact: what a method leaves behind, loadable without the method.

A folder with ``artifact.json`` (per layer: widths, grids, transforms, activation quantizer) and
``weights.safetensors`` (packed codes, steps, transforms, and every parameter that stays in high
precision). Nothing is pickled. A parameter that stays is stored in 16 bits where that is exact,
else as it is, so that a saved and loaded model computes the same bits as the one that was saved.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from harness.bits import IDENTITY_WIDTH
from harness.errors import HarnessError
from harness.quant import transform as transforms
from harness.quant.activation import ActivationSpec
from harness.quant.grid import Affine
from harness.quant.linear import QuantLinear, WeightSpec
from harness.quant.pack import pack, unpack

if TYPE_CHECKING:
    from collections.abc import Iterable

    from diffusers import DiffusionPipeline

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
    layers = {n: m for n, m in transformer.named_modules() if isinstance(m, QuantLinear)}
    tensors: dict[str, Tensor] = {}
    manifest: dict[str, Any] = {"schema": SCHEMA, **about, "layers": {}, "kept_dtypes": {}}
    for name, layer in layers.items():
        manifest["layers"][name] = _describe(layer)
        tensors |= {f"{name}.{key}": value for key, value in _tensors(layer).items()}
    for name, value in transformer.state_dict().items():
        if not any(name.startswith(f"{layer}.") for layer in layers):
            tensors[name] = _compact(value)
            manifest["kept_dtypes"][name] = _dtype_name(value)
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
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        for name, facts in manifest["layers"].items():
            try:
                linear = transformer.get_submodule(name)
            except AttributeError as cause:
                raise _mismatch(folder, f"has no layer '{name}'") from cause
            if (shape := list(facts["shape"])) != list(
                getattr(linear, "weight", torch.empty(0)).shape
            ):
                raise _mismatch(folder, f"has another shape than {shape} at '{name}'")
            replace_module_(transformer, name, _rebuild(name, facts, file).to(device))
        kept = {
            name: file.get_tensor(name).to(getattr(torch, dtype))
            for name, dtype in manifest["kept_dtypes"].items()
        }
    layers = tuple(f"{name}." for name in manifest["layers"])
    expected = {n for n in transformer.state_dict() if not n.startswith(layers)}
    if expected != set(kept):
        raise _mismatch(folder, f"differs in {sorted(expected ^ set(kept))[:3]}")
    transformer.load_state_dict(kept, strict=False)
    return manifest


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


def replace_module_(root: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` at the qualified ``name``."""
    parent, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(parent), leaf, module)


def _mismatch(folder: Path, what: str) -> HarnessError:
    return HarnessError(
        f"artifact '{folder}' does not fit this model: the model {what}",
        "load it into the model named in its artifact.json",
    )


def _describe(layer: QuantLinear) -> dict[str, Any]:
    return {
        "shape": [layer.out_features, layer.in_features],
        "weight": dataclasses.asdict(layer.weight_spec),
        "activation": dataclasses.asdict(layer.activation_spec),
        "transforms": [t.kind for t in layer.transforms],
        "bias": None if layer.bias is None else _dtype_name(layer.bias),
        "dtype": _dtype_name(layer.codes) if layer.scale is None else None,
    }


def _tensors(layer: QuantLinear) -> dict[str, Tensor]:
    identity = layer.weight_spec.bits == IDENTITY_WIDTH
    found = {
        "codes": _compact(layer.codes) if identity else pack(layer.codes, layer.weight_spec.bits)
    }
    steps = cast("Iterable[transforms.Transform]", layer.transforms)
    for i, step in enumerate(steps):
        found |= {f"transforms.{i}.{key}": _compact(value) for key, value in step.tensors().items()}
    for key in ("scale", "zero", "bias"):
        value = getattr(layer, key)
        if value is not None:
            found[key] = _compact(value)
    return found


def _rebuild(name: str, facts: dict[str, Any], file: Any) -> QuantLinear:
    keys = [k for k in file.keys() if k.startswith(f"{name}.")]  # noqa: SIM118 (safe_open is no dict)
    held = {k.removeprefix(f"{name}."): file.get_tensor(k) for k in keys}
    weight = WeightSpec(**facts["weight"])
    steps = []
    for i, kind in enumerate(facts["transforms"]):
        prefix = f"transforms.{i}."
        parts = {k.removeprefix(prefix): v for k, v in held.items() if k.startswith(prefix)}
        steps.append(transforms.build(kind, parts))
    grid = None
    if "scale" in held:
        zero = held["zero"].float() if "zero" in held else None
        grid = Affine(held["scale"].float(), zero)
        codes = unpack(held["codes"], weight.bits, tuple(facts["shape"]), signed=weight.symmetric)
    else:
        codes = held["codes"].to(getattr(torch, facts["dtype"]))
    bias = held["bias"].to(getattr(torch, facts["bias"])) if facts["bias"] else None
    return QuantLinear(
        weight=weight, codes=codes, grid=grid, bias=bias, transforms=steps,
        activation=ActivationSpec(**facts["activation"]),
    )  # fmt: skip


def _compact(value: Tensor) -> Tensor:
    """Store floats in 16 bits where nothing is lost."""
    if value.dtype != torch.float32:
        return value
    for dtype in (torch.float16, torch.bfloat16):
        if torch.equal(value.to(dtype).float(), value):
            return value.to(dtype)
    return value


def _dtype_name(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")
