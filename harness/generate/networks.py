"""Pipelines that hold one network: a row's denoiser, or the decoder that all rows share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.kernels.registry import OFF
from harness.models.offload import NONE, loading_device, place_

if TYPE_CHECKING:
    from pathlib import Path

    from diffusers import DiffusionPipeline
    from torch import nn

    from harness.spec import GenSpec, ModelSpec


def open_denoiser(
    model: ModelSpec,
    gen: GenSpec,
    device: str,
    artifact: Path | None = None,
    *,
    offload: str = NONE,
    kernels: str = OFF,
) -> DiffusionPipeline:
    """Open a row's denoiser; of a quantized one nothing is read but its artifact.

    Args:
        model: The model.
        gen: Settings; says the dtype.
        device: ``cpu``, ``cuda``, ``cuda:1``.
        artifact: Folder of the artifact; None for the full-precision denoiser.
        offload: What of it waits in the host's memory.
        kernels: What computes its quantized layers: ``auto``, ``off`` to simulate them, or the name
            of a kernel; ``harness.kernels.dispatch.execution_of`` says what became of it.
    """
    from harness.models.load import load_pipeline

    start = loading_device(device, offload)
    if artifact is None:
        pipeline = load_pipeline(model, device=start, dtype=gen.dtype, parts={"denoiser"})
    else:
        from harness.models.experts import config_of, replace_denoiser_
        from harness.quant.layers.artifact import open_quantized_denoiser

        pipeline = load_pipeline(model, device=start, dtype=gen.dtype, parts=())
        config = config_of(pipeline)
        made = open_quantized_denoiser(artifact, device=start, config=config)
        replace_denoiser_(pipeline, made)
        if kernels != OFF:
            _install_kernels_(made, model, device, offload=offload, setting=kernels)
    if offload != NONE:
        place_(pipeline, device=device, offload=offload)
    return pipeline


def _install_kernels_(
    denoiser: nn.Module, model: ModelSpec, device: str, *, offload: str, setting: str
) -> None:
    import torch

    from harness.kernels.dispatch import install_kernels_
    from harness.models.families import family_by_name

    install_kernels_(
        denoiser, family_by_name(model.family), setting=setting, device=torch.device(device),
        moved=offload != NONE,
    )  # fmt: skip


def open_decoder(model: ModelSpec, gen: GenSpec, device: str) -> DiffusionPipeline:
    """Open the decoder; arguments as for ``open_denoiser``."""
    from harness.models.load import load_pipeline

    return load_pipeline(model, device=device, dtype=gen.dtype, parts={"decoder"})
