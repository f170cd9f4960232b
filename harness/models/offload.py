"""Offloading: what of a pipeline stays in the host's memory while it is not computed with.

The hooks are diffusers' and accelerate's own. No result depends on them: the same operators run on
the same device, only the weights travel.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from harness.models.families.parts import EXPERTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from diffusers import DiffusionPipeline
    from torch import nn

NONE, COMPONENTS, BLOCKS = OFFLOADS = ("none", "components", "blocks")
"""Nothing is offloaded; one component is on the device at a time; one block of a denoiser is."""

_HOOK = "group_offloading"  # the name under which diffusers registers it


def place_(pipeline: DiffusionPipeline, *, device: str, offload: str = NONE) -> None:
    """Put a pipeline on a device, or attach the hooks that put its parts there when they run.

    Args:
        pipeline: On the CPU.
        device: Where it computes.
        offload: One of ``OFFLOADS``. ``components`` does nothing where there is one alone;
            ``blocks`` also moves the other components layer by layer.

    Raises:
        ValueError: ``offload`` is none of ``OFFLOADS``.
    """
    import torch

    parts = _networks(pipeline)
    if offload == NONE or (offload == COMPONENTS and len(parts) < 2):
        pipeline.to(device)
    elif offload == COMPONENTS and hasattr(pipeline.transformer, EXPERTS):
        _take_turns_(pipeline, list(parts.values()), device)
    elif offload == COMPONENTS:
        pipeline.enable_model_cpu_offload(device=device)
    elif offload == BLOCKS:
        from diffusers.hooks import apply_group_offloading

        for name, part in parts.items():
            blockwise = name.startswith("transformer")
            apply_group_offloading(
                part,
                onload_device=torch.device(device),
                offload_device=torch.device("cpu"),
                offload_type="block_level" if blockwise else "leaf_level",
                num_blocks_per_group=1 if blockwise else None,
            )
    else:
        raise ValueError(f"offload is {offload!r}, expected {', '.join(OFFLOADS)}")


def loading_device(device: str, offload: str) -> str:
    """Where a pipeline is loaded to that ``place_`` then puts on a device."""
    return device if offload == NONE else "cpu"


def _networks(pipeline: DiffusionPipeline) -> dict[str, nn.Module]:
    """The networks that are loaded, by component; of experts in one module each its own."""
    from torch import nn

    return {
        name: part.get_submodule(name) if hasattr(part, EXPERTS) else part
        for name, part in pipeline.components.items()
        if isinstance(part, nn.Module) and any(True for _ in part.parameters())
    }


def _take_turns_(pipeline: DiffusionPipeline, parts: list[nn.Module], device: str) -> None:
    """Let networks of a pipeline with experts be on the device in turn, each until the next runs.

    diffusers' own call goes by the names of components, behind which experts are one module.
    """
    from accelerate import cpu_offload_with_hook
    from accelerate.hooks import ModelHook, add_hook_to_module

    hooks = [cpu_offload_with_hook(part, device)[1] for part in parts]
    for i, hook in enumerate(hooks):
        hook.hook.prev_module_hook = hooks[i - 1]  # of the first: the last, from the clip before
    # diffusers looks for where it computes below components only that have a hook
    add_hook_to_module(pipeline.transformer, ModelHook())


def computing_device(pipeline: DiffusionPipeline) -> torch.device:
    """Where a pipeline computes; with hooks, that is not where its weights rest."""
    found: torch.device = pipeline._execution_device
    return found


def offloaded(module: nn.Module) -> bool:
    """Whether a module's weights are moved by hooks: its own, or those of its parts."""
    return any(_hook(part) is not None or hasattr(part, "_hf_hook") for part in module.modules())


@contextmanager
def resident(block: nn.Module, device: torch.device) -> Iterator[None]:
    """Keep a block on a device, and put it back where it was.

    For work on a block's weights, and for passes of many samples through it: its hooks, which would
    move it at every pass, are taken off meanwhile. What is put into the block goes back with it.
    """
    from diffusers.hooks import HookRegistry

    hook = _hook(block)
    home = next((p.device for p in block.parameters()), device)
    if hook is None and home == device:
        yield
        return
    registry = HookRegistry.check_if_exists_or_initialize(block)
    if hook is not None:
        registry.remove_hook(_HOOK, recurse=False)
    block.to(device)
    try:
        yield
    finally:
        block.to(home)
        if hook is not None:
            registry.register_hook(hook, _HOOK)


def _hook(module: nn.Module) -> Any:
    registry = getattr(module, "_diffusers_hook", None)
    return None if registry is None else registry.get_hook(_HOOK)
