"""Two denoisers that take turns, as one: Wan 2.2 A14B.

One network serves the steps of high noise, another the rest. The pipeline calls them by two names;
here both names are the same module, which hands a call to the network of its timestep. All that
hooks, counts, saves or loads a denoiser thereby sees both, each under its own name. Only
calibration takes them one by one, each on its own steps (``harness.artifact.quantize``).
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from harness.models.admission import check_experts
from harness.models.families.parts import parts_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from diffusers import DiffusionPipeline

FIRST, SECOND = "transformer", "transformer_2"
"""The pipeline's names, which are those of the parts: high noise, then low."""


class WanExperts(nn.Module):
    """The denoiser of a pipeline with two of them.

    Args:
        experts: Networks by name, the one of the high-noise steps first.
        boundary: Timestep from which on upwards the first serves.
    """

    def __init__(self, experts: Mapping[str, nn.Module], boundary: float) -> None:
        super().__init__()
        for name, expert in experts.items():
            self.add_module(name, expert)
        self.expert_names = tuple(experts)
        self.boundary = boundary

    @property
    def config(self) -> Any:
        """Config of the first expert; both are of one architecture."""
        return self._first.config

    @property
    def dtype(self) -> torch.dtype:
        """Of the first expert."""
        found: torch.dtype = self._first.dtype
        return found

    @property
    def device(self) -> torch.device:
        """Of the first expert."""
        found: torch.device = self._first.device
        return found

    @property
    def _first(self) -> Any:
        return self.get_submodule(self.expert_names[0])

    def serving(self, timestep: Tensor | float) -> str:
        """Name of the expert that serves a timestep; of one for each token the highest counts."""
        high = float(torch.as_tensor(timestep).float().max()) >= self.boundary
        return self.expert_names[0 if high else 1]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the expert of the timestep."""
        return self.get_submodule(self.serving(kwargs["timestep"]))(*args, **kwargs)

    @contextmanager
    def cache_context(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """What the pipeline enters around a call of a branch, for both experts."""
        with ExitStack() as stack:
            for expert in self.expert_names:
                part: Any = self.get_submodule(expert)
                stack.enter_context(part.cache_context(*args, **kwargs))
            yield


def denoiser_of(pipeline: DiffusionPipeline) -> nn.Module:
    """The denoiser of a pipeline, both experts as one where it has two.

    The pipeline is left as it is; its networks, out of the wrappers of ``torch.compile``, are the
    parts of what is returned.

    Raises:
        HarnessError: There are two and nothing says when each serves, or they differ.
    """
    first = _plain(pipeline.transformer)
    second = getattr(pipeline, SECOND, None)
    if second is None or isinstance(first, WanExperts):
        return first
    boundary = _boundary(pipeline)
    return WanExperts({FIRST: first, SECOND: _plain(second)}, boundary)


def config_of(pipeline: DiffusionPipeline) -> dict[str, Any]:
    """What the denoiser of a pipeline is built with, from its networks or what stands in for them.

    Returns:
        What ``harness.models.skeleton.empty_denoiser`` takes.

    Raises:
        HarnessError: There are two and nothing says when each serves, or they differ.
    """
    first = pipeline.transformer
    second = getattr(pipeline, SECOND, None)
    if second is None:
        return dict(first.config)
    experts = {FIRST: dict(first.config), SECOND: dict(second.config)}
    return {"boundary": _boundary(pipeline), "experts": experts}


def _plain(module: nn.Module) -> nn.Module:
    found: nn.Module = getattr(module, "_orig_mod", module)
    return found


def _boundary(pipeline: DiffusionPipeline) -> float:
    """Timestep between the experts, by the rule of the pipeline."""
    networks: list[Any] = [_plain(getattr(pipeline, name)) for name in (FIRST, SECOND)]
    ratio = getattr(pipeline.config, "boundary_ratio", None)
    kinds = [type(network).__name__ for network in networks]
    check_experts(type(pipeline).__name__, kinds, ratio, [network.config for network in networks])
    return float(ratio * pipeline.scheduler.config.num_train_timesteps)


def join_experts_(pipeline: DiffusionPipeline) -> None:
    """Make two denoisers of a pipeline one, under both of its names; one is left as it is."""
    joined = denoiser_of(pipeline)
    if joined is not pipeline.transformer:
        replace_denoiser_(pipeline, joined)


def part_experts_(pipeline: DiffusionPipeline) -> None:
    """Put the experts back under their own names, as diffusers has them."""
    if isinstance(pipeline.transformer, WanExperts):
        pipeline.register_modules(**parts_of(pipeline.transformer))


def replace_denoiser_(pipeline: DiffusionPipeline, denoiser: nn.Module) -> None:
    """Put a denoiser in the place of a pipeline's, under both names where it is of two."""
    names = (FIRST, SECOND) if isinstance(denoiser, WanExperts) else (FIRST,)
    pipeline.register_modules(**dict.fromkeys(names, denoiser))


def network_at(denoiser: nn.Module, timestep: float) -> nn.Module:
    """The network that serves a timestep: the denoiser itself where it is one."""
    if not isinstance(denoiser, WanExperts):
        return denoiser
    return denoiser.get_submodule(denoiser.serving(timestep))


def steps_served(pipeline: DiffusionPipeline) -> dict[str, int]:
    """How many of the scheduler's steps each part serves, by the part's name in ``parts_of``.

    Args:
        pipeline: One whose denoisers are joined and whose scheduler has its timesteps.
    """
    denoiser, timesteps = pipeline.transformer, pipeline.scheduler.timesteps
    if not isinstance(denoiser, WanExperts):
        return {"": len(timesteps)}
    served = [denoiser.serving(timestep) for timestep in timesteps]
    return {name: served.count(name) for name in denoiser.expert_names}
