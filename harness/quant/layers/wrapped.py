"""What may stand around a denoiser: a compiler's wrapper, hooks that move it, adapters, saving."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from harness.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

_GROUP_HOOKS = {
    "group_offloading": "enable_group_offload()",
    "layerwise_casting": "enable_layerwise_casting()",
}
"""Hooks of diffusers that hold single weights, and what attaches them."""


def unwrapped(module: nn.Module) -> nn.Module:
    """The module that ``torch.compile`` has wrapped, or the module itself."""
    found: nn.Module = getattr(module, "_orig_mod", module)
    return found


def check_replaceable(transformer: nn.Module) -> None:
    """Refuse a denoiser whose linears something else holds.

    A hook that moves the denoiser as a whole (``enable_model_cpu_offload``) moves what is put into
    it as well, and is let through.

    Raises:
        UsageError: Its weights are offloaded one by one, cast layer by layer, spread over devices,
            or have adapters.
    """
    if getattr(transformer, "peft_config", None):
        raise UsageError(
            "the denoiser of this pipeline has adapters",
            "call unload_lora_weights() on the pipeline first",
        )
    for module in transformer.modules():
        hooks = getattr(getattr(module, "_diffusers_hook", None), "hooks", {})
        for name, call in _GROUP_HOOKS.items():
            if name in hooks:
                raise _held(call)
        if _moves_weights(getattr(module, "_hf_hook", None)):
            raise _held("enable_sequential_cpu_offload() or device_map")


def refuse_saving_(module: Any, folder: Path) -> None:
    """Make ``save_pretrained`` of a denoiser or pipeline say how an artifact is kept, in place."""
    module.save_pretrained = partial(_refuse, str(folder))


def _refuse(folder: str, *args: Any, **kwargs: Any) -> None:
    del args, kwargs
    raise UsageError(
        "save_pretrained cannot write quantized layers: what it wrote would load as noise",
        f"keep the full-precision pipeline and '{folder}'; harness.load_quantized joins them",
    )


def _moves_weights(hook: Any) -> bool:
    """Whether a hook of accelerate places single weights, not the module as a whole."""
    if hook is None:
        return False
    from accelerate.hooks import CpuOffload, SequentialHook

    if isinstance(hook, SequentialHook):
        return any(_moves_weights(part) for part in hook.hooks)
    return not isinstance(hook, CpuOffload)


def _held(call: str) -> UsageError:
    return UsageError(
        f"the weights of this pipeline's denoiser are held by {call}",
        "load the pipeline again, load the artifact, and offload or cast afterwards",
    )
