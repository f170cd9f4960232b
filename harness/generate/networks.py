"""Pipelines that hold one network: a row's denoiser, or the decoder that all rows share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.models.offload import NONE, loading_device, place_

if TYPE_CHECKING:
    from pathlib import Path

    from diffusers import DiffusionPipeline

    from harness.spec import GenSpec, ModelSpec


def open_denoiser(
    model: ModelSpec,
    gen: GenSpec,
    device: str,
    artifact: Path | None = None,
    *,
    offload: str = NONE,
) -> DiffusionPipeline:
    """Open a row's denoiser; of a quantized one nothing is read but its artifact.

    Args:
        model: The model.
        gen: Settings; says the dtype.
        device: ``cpu``, ``cuda``, ``cuda:1``.
        artifact: Folder of the artifact; None for the full-precision denoiser.
        offload: What of it waits in the host's memory.
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
    if offload != NONE:
        place_(pipeline, device=device, offload=offload)
    return pipeline


def open_decoder(model: ModelSpec, gen: GenSpec, device: str) -> DiffusionPipeline:
    """Open the decoder; arguments as for ``open_denoiser``."""
    from harness.models.load import load_pipeline

    return load_pipeline(model, device=device, dtype=gen.dtype, parts={"decoder"})
