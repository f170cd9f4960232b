"""Loading a diffusers pipeline from the hub, from a folder or from the package."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.models.families import family_by_name, family_name_of
from harness.models.hub import MODEL_INDEX, TWO_DENOISERS, refuse_two_denoisers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from diffusers import DiffusionPipeline
    from torch import nn

    from harness.spec import ModelSpec


IMPORT_NOISE = (
    "bitsandbytes", "torchao", "torch.utils._pytree",
    "diffusers.quantizers.torchao.torchao_quantizer",
)  # fmt: skip
"""Loggers of diffusers and of libraries it finds, which warn at import of other devices' needs."""


@contextmanager
def _quiet_import() -> Iterator[None]:
    """Leave out warnings about extensions that this device could not use anyway."""
    loggers = [logging.getLogger(name) for name in IMPORT_NOISE]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def load_pipeline(spec: ModelSpec, *, device: str, dtype: str) -> DiffusionPipeline:
    """Load a pipeline in evaluation mode.

    Args:
        spec: Folder in diffusers format, or hub id and revision.
        device: ``cpu``, ``cuda``, ``cuda:1``.
        dtype: ``float32``, ``bfloat16`` or ``float16``.

    Raises:
        HarnessError: The folder is no pipeline, the hub cannot be reached, or the family is not
            supported.
    """
    import torch

    with _quiet_import():
        from diffusers import DiffusionPipeline
        from diffusers.utils.logging import disable_progress_bar
        from transformers.utils.logging import disable_progress_bar as disable_transformers_bar

    disable_progress_bar()
    disable_transformers_bar()
    folder = Path(spec.repo)
    if folder.is_absolute() and not (folder / MODEL_INDEX).is_file():
        raise HarnessError(
            f"'{folder}' is not a pipeline in diffusers format (no {MODEL_INDEX})",
            "give a folder written by save_pretrained, or a model name: see `harness list models`",
        )
    wanted: Any = getattr(torch, dtype)
    if single := family_by_name(spec.family).single_precision:
        wanted = {"default": wanted, **dict.fromkeys(single, torch.float32)}
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            spec.repo,
            # the revision of a folder is a digest of its files, which is no commit
            revision=None if folder.is_absolute() else spec.revision or None,
            dtype=wanted,
            local_files_only=folder.is_absolute(),
        )
    except OSError as cause:
        raise HarnessError(
            f"model '{spec.name}' cannot be loaded from '{spec.repo}': {_first_line(cause)}",
            "check the network and the id, or download it and give the folder",
        ) from cause
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(device)
    denoiser: nn.Module = pipeline.transformer
    denoiser.eval().requires_grad_(False)
    family_name_of(type(denoiser).__name__)  # refuses a class of no family
    if getattr(pipeline, TWO_DENOISERS, None) is not None:
        refuse_two_denoisers(spec.name, {TWO_DENOISERS: [type(denoiser).__name__]})
    if spec.variant:
        _derive_(pipeline, spec)
    return pipeline


def _derive_(pipeline: DiffusionPipeline, spec: ModelSpec) -> None:
    if spec.variant != "outliers":
        raise HarnessError(f"model variant '{spec.variant}' is unknown", "known: outliers")
    from harness.models.outliers import plant_outliers_

    plant_outliers_(pipeline.transformer, family_by_name(spec.family))


def _first_line(cause: BaseException) -> str:
    return (str(cause).strip() or type(cause).__name__).splitlines()[0]
