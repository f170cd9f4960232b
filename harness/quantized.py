"""For people who only want the model: a quantized denoiser in a diffusers pipeline, in one call."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.quant.artifact import load_artifact_

if TYPE_CHECKING:
    import os

    from diffusers import DiffusionPipeline


def load_quantized(
    pipeline: DiffusionPipeline, artifact: str | os.PathLike[str]
) -> DiffusionPipeline:
    """Put an artifact into a pipeline, in place; the method that made it is not needed.

    Args:
        pipeline: The full-precision pipeline that the artifact was made from.
        artifact: Its folder, as `harness show run` prints it.

    Returns:
        The same pipeline.

    Raises:
        HarnessError: The folder is no artifact, or it was made from another architecture.
    """
    load_artifact_(pipeline.transformer, Path(artifact))
    return pipeline
