"""The artifact: what a method leaves behind, loadable without the method.

It goes into a full-precision denoiser, or into one whose weights were never read. Everything is
checked and read before the first layer is replaced, so that what cannot be loaded leaves the model
as it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from harness.errors import HarnessError, UsageError
from harness.models.experts import FIRST, SECOND, WanExperts, denoiser_of
from harness.models.families import family_by_name, family_name_of
from harness.models.families.fold import MODULATION_SCALE, restore_modulation_scales_
from harness.models.families.fold_targets import TableFold
from harness.models.families.parts import parts_of
from harness.models.skeleton import empty_denoiser
from harness.quant.layers.layers import dtype_name, quantized_layers, replace_module_
from harness.quant.layers.policy import attach_policy_, build_policies
from harness.quant.layers.shards import WEIGHTS as WEIGHTS
from harness.quant.layers.shards import StoredTensors, damaged
from harness.quant.layers.stored import MANIFEST as MANIFEST
from harness.quant.layers.stored import MODEL_CONFIG, open_artifact, stored_layer
from harness.quant.layers.stored import artifact_bytes as artifact_bytes
from harness.quant.layers.stored import read_manifest as read_manifest
from harness.quant.layers.stored import save_artifact as save_artifact
from harness.quant.layers.stored import stored_layers as stored_layers
from harness.quant.layers.wrapped import check_replaceable, refuse_saving_, unwrapped

if TYPE_CHECKING:
    from collections.abc import Mapping

    from diffusers import DiffusionPipeline
    from torch import Tensor, nn

    from harness.quant.layers.layers import QuantizedLayer
    from harness.quant.layers.policy import StepPolicy

_FACTOR = f".{MODULATION_SCALE}.factor"
_LOOK = 1 << 20
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def load_artifact_(
    transformer: nn.Module, folder: Path, *, device: torch.device | str | None = None
) -> dict[str, Any]:
    """Turn a full-precision transformer into the quantized one, in place; all of it or nothing.

    Args:
        transformer: The model the artifact was made from; its weights may be on the meta device.
        folder: Artifact folder.
        device: Where the layers shall be; None for where the transformer is.

    Returns:
        The manifest.

    Raises:
        HarnessError: The folder is no artifact, is damaged, or fits another model.
    """
    transformer = unwrapped(transformer)
    manifest, tensors = open_artifact(folder)
    check_fit(transformer, manifest, tensors)
    ready = _read(manifest, tensors, torch.device(device or _device(transformer)))
    # From here on nothing is read and nothing is refused.
    for name, layer in ready.layers.items():
        replace_module_(transformer, name, layer)
    restore_modulation_scales_(transformer, ready.kept)
    empty = any(value.is_meta for value in transformer.state_dict().values())
    transformer.load_state_dict(ready.kept, strict=False, assign=empty)
    if empty:
        transformer.eval().requires_grad_(False)
    for name, policy in ready.policies.items():
        attach_policy_(transformer.get_submodule(name), policy)
    for part in parts_of(transformer).values():
        refuse_saving_(part, folder)
    return manifest


def load_quantized(pipeline: DiffusionPipeline, artifact: str | Path) -> DiffusionPipeline:
    """Put an artifact into a diffusers pipeline, in place: all that a user of the model needs.

    Args:
        pipeline: The full-precision pipeline the artifact was made from; its denoiser may be
            compiled, and moved between devices as a whole.
        artifact: Artifact folder.

    Returns:
        The same pipeline, its denoiser quantized.

    Raises:
        UsageError: The denoiser's weights are held by something else, or have another dtype.
        HarnessError: The folder is no artifact, is damaged, or belongs to another model.
    """
    transformer, folder = denoiser_of(pipeline), Path(artifact)
    for part in parts_of(transformer).values():
        check_replaceable(part)
    manifest, tensors = open_artifact(folder)
    check_fit(transformer, manifest, tensors)
    wanted, found = kept_dtype(manifest, tensors), _common_dtype(transformer)
    if wanted is not None and wanted != found:
        name = dtype_name(torch.empty(0, dtype=wanted))
        raise UsageError(
            f"artifact '{folder}' is of a model in {name}, this pipeline is in "
            f"{dtype_name(torch.empty(0, dtype=found))}",
            f"load the pipeline with dtype={name}",
        )
    load_artifact_(transformer, folder)
    given = (getattr(pipeline, name, None) for name in (FIRST, SECOND))
    if any(module is not None and unwrapped(module) is not module for module in given):
        torch.compiler.reset()  # what was compiled holds the weights that were replaced
    refuse_saving_(pipeline, folder)
    return pipeline


def open_quantized_denoiser(
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    config: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build the quantized denoiser of an artifact without the full-precision one.

    Nothing but the artifact is read, a tensor at a time: the most that is held is the quantized
    denoiser and one layer.

    Args:
        folder: Artifact folder.
        device: Where it shall be.
        config: Config of the denoiser, for artifacts of earlier versions, which do not hold it.

    Returns:
        The denoiser in evaluation mode, in the dtype that it was quantized in.

    Raises:
        HarnessError: The folder is no artifact, is damaged, or does not say what model it is of.
    """
    manifest, tensors = open_artifact(folder)
    held = config if config is not None else manifest.get(MODEL_CONFIG)
    if held is None or "model_class" not in manifest:
        raise HarnessError(
            f"artifact '{folder}' does not hold the config of its model",
            "load the pipeline and call harness.load_quantized, or quantize again",
        )
    dtype = kept_dtype(manifest, tensors) or torch.float32
    transformer = empty_denoiser(str(manifest["model_class"]), held, dtype)
    load_artifact_(transformer, folder, device=device)
    _move_buffers_(transformer, torch.device(device))
    return transformer


def kept_dtype(manifest: Mapping[str, Any], tensors: StoredTensors) -> torch.dtype | None:
    """The dtype that most values which stay in high precision have; None where none stay."""
    counts: dict[torch.dtype, int] = {}
    for name, dtype in manifest["kept_dtypes"].items():
        own = getattr(torch, dtype)
        if own.is_floating_point:
            shape = tensors.place(name).shape
            counts[own] = counts.get(own, 0) + torch.Size(shape).numel()
    return max(counts, key=lambda dtype: counts[dtype]) if counts else None


def _common_dtype(transformer: nn.Module) -> torch.dtype:
    """The dtype that most values of a model have."""
    counts: dict[torch.dtype, int] = {}
    for value in transformer.parameters():
        counts[value.dtype] = counts.get(value.dtype, 0) + value.numel()
    return max(counts, key=lambda dtype: counts[dtype])


def check_fit(transformer: nn.Module, manifest: Mapping[str, Any], tensors: StoredTensors) -> None:
    """Hold an artifact against a denoiser, by what it says and what its headers say.

    Raises:
        HarnessError: The denoiser is quantized already, or not the one the artifact is of.
    """
    folder = tensors.folder
    if quantized_layers(transformer):
        raise HarnessError(
            f"artifact '{folder}' cannot be loaded into a denoiser that is quantized already",
            "load the pipeline again",
        )
    wanted, found = manifest.get("model_class"), type(transformer).__name__
    if wanted is not None and wanted != found:
        raise _mismatch(folder, f"is a {found}, the artifact is of a {wanted}")
    _check_config(transformer, manifest, folder)
    for name, facts in manifest["layers"].items():
        try:
            linear = transformer.get_submodule(name)
        except AttributeError as cause:
            raise _mismatch(folder, f"has no layer '{name}'") from cause
        shape = list(facts["shape"])
        if shape != list(getattr(linear, "weight", torch.empty(0)).shape):
            raise _mismatch(folder, f"has another shape than {shape} at '{name}'")
    _check_kept(transformer, manifest, tensors)


def _check_config(transformer: nn.Module, manifest: Mapping[str, Any], folder: Path) -> None:
    """What decides about the computation beside the weights: patches, rotary tables, constants."""
    theirs = manifest.get(MODEL_CONFIG)
    if theirs is None:
        return
    if not isinstance(transformer, WanExperts):
        _compare(getattr(transformer, "config", None), theirs, folder)
        return
    _compare({"boundary": transformer.boundary}, {"boundary": theirs.get("boundary")}, folder)
    for name, part in parts_of(transformer).items():
        _compare(part.config, theirs.get("experts", {}).get(name, {}), folder)


def _compare(own: Any, theirs: Mapping[str, Any], folder: Path) -> None:
    for name, value in theirs.items():
        mine = value if own is None else own.get(name, value)
        if _plain(mine) != _plain(value):
            raise _mismatch(folder, f"has {name} {mine}, the artifact's has {value}")


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _check_kept(
    transformer: nn.Module, manifest: Mapping[str, Any], tensors: StoredTensors
) -> None:
    folder, kept = tensors.folder, set(manifest["kept_dtypes"])
    inside = tuple(f"{name}." for name in manifest["layers"])
    own = {n: v for n, v in transformer.state_dict().items() if not n.startswith(inside)}
    added = {n for n in kept - set(own) if _scales_a_modulation(transformer, n)}
    if differing := sorted(set(own) ^ (kept - added)):
        raise _mismatch(folder, f"differs in {differing[:3]}")
    for name in kept:
        place = tensors.place(name)
        if name in own and tuple(own[name].shape) != place.shape:
            raise _mismatch(folder, f"has another shape than {list(place.shape)} at '{name}'")


def _scales_a_modulation(transformer: nn.Module, name: str) -> bool:
    """Whether a kept tensor is a scale that loading attaches to a block."""
    if not name.endswith(_FACTOR):
        return False
    facts = family_by_name(family_name_of(type(transformer).__name__))
    blocks = dict(facts.blocks(transformer))
    block = blocks.get(name.removesuffix(_FACTOR))
    return block is not None and any(isinstance(g.fold, TableFold) for g in facts.groups(block))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Ready:
    """All of an artifact, to be put in its place."""

    layers: dict[str, QuantizedLayer]
    kept: dict[str, Tensor]
    policies: dict[str, StepPolicy]


def _read(manifest: dict[str, Any], tensors: StoredTensors, device: torch.device) -> _Ready:
    layers: dict[str, QuantizedLayer] = {}
    for name in manifest["layers"]:
        layer, parts = stored_layer(name, manifest, tensors)
        for key, value in parts.items():
            _check_finite(tensors.folder, f"{name}.{key}", value)
        layers[name] = layer.to(device)
    kept = {}
    for name, dtype in manifest["kept_dtypes"].items():
        value = tensors.get(name)
        _check_finite(tensors.folder, name, value)
        kept[name] = value.to(device=device, dtype=getattr(torch, dtype))
    policy = manifest.get("step_policy")
    try:
        built = {} if policy is None else build_policies(policy)
    except (KeyError, ValueError, TypeError, AttributeError) as cause:
        raise damaged(tensors.folder, f"is damaged: its step policy is none ({cause})") from cause
    return _Ready(layers=layers, kept=kept, policies=built)


def _check_finite(folder: Path, name: str, value: Tensor) -> None:
    if value.dtype not in _FLOATS:
        return
    # in parts: what the look needs shall not be as large as the tensor
    if not all(bool(torch.isfinite(part).all()) for part in value.reshape(-1).split(_LOOK)):
        what = "a step" if name.endswith(".scale") else "a value"
        raise damaged(folder, f"is damaged: {what} is not finite in '{name}'")


def _device(transformer: nn.Module) -> torch.device:
    """Where a denoiser is; the CPU for one without weights."""
    first = next(transformer.parameters(), None)
    return torch.device("cpu") if first is None or first.is_meta else first.device


def _move_buffers_(transformer: nn.Module, device: torch.device) -> None:
    """Move what the artifact does not hold: tables that the model computes when it is built."""
    for module in transformer.modules():
        for name, value in module.named_buffers(recurse=False):
            if value.device != device and not value.is_meta:
                setattr(module, name, value.to(device))


def _mismatch(folder: Path, what: str) -> HarnessError:
    return HarnessError(
        f"artifact '{folder}' does not fit this model: the model {what}",
        "load it into the model named in its artifact.json",
    )
