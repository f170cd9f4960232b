"""What ranks the layers of a group in ViDiT-Q's mixed precision (arXiv 2406.02540).

The paper's metrics need their own weights and decoded clips. These are proxies on the denoiser's
output; each is larger for more damage.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import AfterValidator

from harness.api import HarnessError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    Metric = Callable[[Tensor, Tensor], float]


def output_error(reference: Tensor, quantized: Tensor) -> float:
    """Relative squared error of the conditional branch; proxy of DOVER's video quality.

    Args:
        reference: Full-precision denoiser output ``[branches, frames, features]``, the conditional
            branch last.
        quantized: The same with one layer quantized.
    """
    return _relative(reference[-1], quantized[-1])


def guidance_error(reference: Tensor, quantized: Tensor) -> float:
    """Relative squared error of conditional minus unconditional output; proxy of CLIPScore.

    That difference is all that the text changes.

    Raises:
        HarnessError: The model has one guidance branch only.
    """
    if reference.shape[0] < 2:
        raise HarnessError(
            "the metric 'guidance' needs a conditional and an unconditional branch",
            "choose text_metric = 'output' for a model without classifier-free guidance",
        )
    return _relative(reference[-1] - reference[0], quantized[-1] - quantized[0])


def motion_error(reference: Tensor, quantized: Tensor) -> float:
    """Relative squared error of the differences between frames; proxy of the flow score."""
    return _relative(reference[-1].diff(dim=0), quantized[-1].diff(dim=0))


METRICS: dict[str, Metric] = {
    "output": output_error,
    "guidance": guidance_error,
    "motion": motion_error,
}
"""Proxies by name; each is larger for more damage."""


def metric_named(name: str) -> Metric:
    """Look a metric up: one of ``METRICS``, or ``package.module:function`` of one's own.

    A metric gets the full-precision and the quantized output of the denoiser, each
    ``[branches, frames, features]``, and returns the damage.

    Raises:
        ValueError: There is no such metric.
    """
    if name in METRICS:
        return METRICS[name]
    module, colon, function = name.partition(":")
    if not colon:
        raise ValueError(f"no metric, which are {', '.join(METRICS)}, or module:function")
    try:
        found: Metric = getattr(import_module(module), function)
    except (ImportError, AttributeError) as cause:
        raise ValueError(f"a metric that cannot be imported: {cause}") from cause
    return found


def _known(name: str) -> str:
    metric_named(name)
    return name


MetricName = Annotated[str, AfterValidator(_known)]
"""Name of a metric that ``metric_named`` finds."""


def _relative(reference: Tensor, other: Tensor) -> float:
    """||other - reference||^2 / ||reference||^2."""
    scale = reference.square().sum().clamp_min(torch.finfo(reference.dtype).tiny)
    return float((other - reference).square().sum() / scale)
