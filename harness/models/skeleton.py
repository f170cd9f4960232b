"""A denoiser without weights: its modules and its computed tables, no parameter in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.models.admission import EXPERT_CLASS
from harness.models.default_dtype import default_dtype
from harness.models.families import family_name_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import nn


def empty_denoiser(class_name: str, config: Mapping[str, Any], dtype: torch.dtype) -> nn.Module:
    """Build a denoiser whose parameters are on the meta device.

    Buffers are real, on the CPU: rotary and positional tables are in no checkpoint, a constructor
    computes them. They come out as ``from_pretrained`` makes them, which builds a model the same
    way under the same default dtype.

    Args:
        class_name: Class of diffusers.
        config: What it is built with; of experts the ``boundary`` and, under ``experts``, the
            config of each.
        dtype: Default dtype of what is built.

    Raises:
        HarnessError: The class belongs to no supported family, or does not take the config.
    """
    import diffusers
    from accelerate import init_empty_weights

    from harness.models.experts import WanExperts

    if class_name == WanExperts.__name__:
        return _empty_experts(config, dtype)
    family_name_of(class_name)  # refuses a class of no family
    try:
        with default_dtype(dtype), init_empty_weights(include_buffers=False):
            built: nn.Module = getattr(diffusers, class_name).from_config(dict(config))
    except (TypeError, ValueError, AttributeError) as cause:
        raise HarnessError(
            f"no {class_name} can be built from its config: {cause}",
            "quantize again with this version, or install the diffusers it was made with",
        ) from cause
    return built.eval().requires_grad_(False)


def _empty_experts(config: Mapping[str, Any], dtype: torch.dtype) -> nn.Module:
    from harness.models.experts import FIRST, SECOND, WanExperts

    try:
        boundary, experts = float(config["boundary"]), dict(config["experts"])
        if tuple(experts) != (FIRST, SECOND):
            raise ValueError(f"experts are {sorted(experts)}")
    except (KeyError, TypeError, ValueError) as cause:
        raise HarnessError(
            f"no two experts can be built from their config: {cause}",
            "quantize again with this version",
        ) from cause
    built = {name: empty_denoiser(EXPERT_CLASS, own, dtype) for name, own in experts.items()}
    return WanExperts(built, boundary).eval()
