"""Loading a diffusers pipeline from the hub, from a folder or from the package."""

from __future__ import annotations

import inspect
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.models.components import Component, explained, load_component, quiet
from harness.models.families import family_by_name, family_name_of
from harness.models.files import DENOISER, PARTS, TEXT, components, has_weights, part_of
from harness.models.hub import MODEL_INDEX
from harness.models.repository import download
from harness.models.scheduler import set_flow_shift_
from harness.models.stand_in import stand_in

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from diffusers import DiffusionPipeline

    from harness.spec import ModelSpec


IMPORT_NOISE = (
    "bitsandbytes", "torchao", "torch.utils._pytree",
    "diffusers.quantizers.torchao.torchao_quantizer",
)  # fmt: skip
"""Loggers of diffusers and of libraries it finds, which warn at import of other devices' needs."""


def load_pipeline(
    spec: ModelSpec, *, device: str, dtype: str, parts: Collection[str] | None = None
) -> DiffusionPipeline:
    """Load a pipeline in evaluation mode, or the parts of it that a stage uses.

    Components that text-to-video does not use are never loaded. Of a part that is not wanted no
    weights are read: text encoders and tokenizers are None, in the place of denoiser and VAE stands
    a :class:`~harness.models.stand_in.StandIn`. The scheduler is always there. Two denoisers are
    one module under both of their names (``harness.models.experts``).

    Args:
        spec: Folder in diffusers format, or hub id and revision.
        device: ``cpu``, ``cuda``, ``cuda:1``.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        parts: ``text``, ``denoiser``, ``decoder``, any of them; None for all.

    Raises:
        HarnessError: The folder is no pipeline, the hub cannot be reached, the family is not
            supported, or what was loaded is not what was asked: a tensor is missing, unexpected, of
            another shape, or not finite.
        ValueError: A part is unknown.
    """
    with quiet(IMPORT_NOISE, logging.ERROR):
        import diffusers
        from diffusers.utils.logging import disable_progress_bar
        from transformers.utils.logging import disable_progress_bar as disable_transformers_bar

    disable_progress_bar()
    disable_transformers_bar()
    wanted = frozenset(PARTS if parts is None else parts)
    if wanted - set(PARTS):
        raise ValueError(f"parts are {sorted(wanted)}, expected some of {', '.join(PARTS)}")
    folder = Path(spec.repo)
    if not folder.is_absolute():
        folder = download(spec.repo, spec.revision, parts=wanted, dtype=dtype)
    index = _read_index(folder)
    cls = getattr(diffusers, str(index.get("_class_name")), None)
    if cls is None:
        raise HarnessError(
            f"model '{spec.name}' is a '{index.get('_class_name')}', which diffusers "
            f"{diffusers.__version__} does not have",
            "upgrade diffusers, or choose a model of a supported family: docs/families.md",
        )
    family_name_of(str(index.get("transformer", ["", ""])[1]))  # refuses a class of no family
    pipeline = _build(
        cls,
        folder,
        index,
        _Wanted(
            parts=wanted,
            device=device,
            dtype=dtype,
            single_precision=family_by_name(spec.family).single_precision,
        ),
    )
    pipeline.set_progress_bar_config(disable=True)
    set_flow_shift_(pipeline, spec.gen.flow_shift)
    if DENOISER in wanted:
        from harness.models.experts import join_experts_

        join_experts_(pipeline)
    if spec.variant and DENOISER in wanted:
        _derive_(pipeline, spec)
    return pipeline


@dataclass(frozen=True, kw_only=True, slots=True)
class _Wanted:
    """What is loaded, where to, and in what."""

    parts: frozenset[str]
    device: str
    dtype: str
    single_precision: tuple[str, ...]

    def dtype_of(self, component: str) -> str:
        return "float32" if component in self.single_precision else self.dtype


def _build(cls: Any, folder: Path, index: Mapping[str, Any], wanted: _Wanted) -> DiffusionPipeline:
    """Load the components that the pipeline's class takes, and hand it them."""
    found = components(index)
    arguments: dict[str, Any] = {}
    for name, parameter in inspect.signature(cls.__init__).parameters.items():
        if name in found:
            component = Component(
                folder=folder, name=name, library=found[name][0], class_name=found[name][1]
            )
            arguments[name] = _component(component, wanted)
        elif name in index and not isinstance(index[name], list):
            arguments[name] = index[name]
        elif name != "self" and parameter.default is inspect.Parameter.empty:
            if part_of(name) is not None:
                raise HarnessError(
                    f"'{folder / MODEL_INDEX}' names no '{name}', which a {cls.__name__} needs",
                    "download the folder again, or save the pipeline with save_pretrained",
                )
            arguments[name] = None
    pipeline: DiffusionPipeline = cls(**arguments)
    pipeline.register_to_config(_name_or_path=str(folder))
    return pipeline


def _component(component: Component, wanted: _Wanted) -> Any:
    part = part_of(component.name)
    if part is None or (part == TEXT and TEXT not in wanted.parts):
        return None
    dtype = wanted.dtype_of(component.name)
    if has_weights(component.name) and part not in wanted.parts:
        import torch

        with explained(component):
            return stand_in(component.find_class(), component.path, getattr(torch, dtype))
    return load_component(component, device=wanted.device, dtype=dtype)


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / MODEL_INDEX
    if not path.is_file():
        raise HarnessError(
            f"'{folder}' is not a pipeline in diffusers format (no {MODEL_INDEX})",
            "give a folder written by save_pretrained, or a model name: see `harness list models`",
        )
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise HarnessError(
            f"'{path}' cannot be read ({type(cause).__name__})", "download the folder again"
        ) from cause
    if not isinstance(index, dict):
        raise HarnessError(f"'{path}' is no object of JSON", "download the folder again")
    return index


def _derive_(pipeline: DiffusionPipeline, spec: ModelSpec) -> None:
    if spec.variant != "outliers":
        raise HarnessError(f"model variant '{spec.variant}' is unknown", "known: outliers")
    from harness.models.outliers import plant_outliers_

    plant_outliers_(pipeline.transformer, family_by_name(spec.family))
