"""Whether what was loaded is what was asked for: every tensor from the file, every value finite."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor, nn

_NAMED = 3
_CHUNK = 1 << 24


def check_loading(component: str, module: nn.Module, info: Mapping[str, Any]) -> None:
    """Refuse a component with tensors that are not those of its files.

    The libraries leave out of ``info`` what a class declares: weights that are tied to another
    (the embeddings of T5 and UMT5), and keys that it ignores (the decoder of a T5 whose encoder is
    loaded). Unexpected keys pass that name a buffer which the class does not keep
    (``position_ids``, rotary frequencies): it computes them from its config.

    Args:
        component: Its name.
        module: The component.
        info: ``output_loading_info`` of ``from_pretrained``.

    Raises:
        HarnessError: A tensor is missing, unexpected or of another shape.
    """
    computed = {name for name, _ in module.named_buffers()} - set(module.state_dict())
    mismatched = [
        f"{name} is {tuple(found)} and should be {tuple(wanted)}"
        for name, found, wanted in sorted(info["mismatched_keys"])
    ]
    for kind, names in (
        ("lacks", [f"'{name}'" for name in sorted(info["missing_keys"])]),
        ("has another shape in", mismatched),
        ("has unexpected", [f"'{n}'" for n in sorted(set(info["unexpected_keys"]) - computed)]),
    ):
        if names:
            raise HarnessError(
                f"component '{component}' {kind} {_some(names)}: its files are not those of a "
                f"{type(module).__name__} with this config.json",
                "download the component again, weights and config of the same revision",
            )


def check_finite(component: str, module: nn.Module) -> None:
    """Refuse weights that hold NaN or infinity, on the device where they are.

    One pass over each tensor without a copy; the answers of all are read at once.

    Args:
        component: Its name.
        module: The component.

    Raises:
        HarnessError: A weight is not finite.
    """
    import torch

    tensors = {
        name: value
        for name, value in module.state_dict().items()
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel()
    }
    if not tensors:
        return
    answers = torch.stack([_finite(value) for value in tensors.values()]).tolist()
    broken = [f"'{name}'" for name, fine in zip(tensors, answers, strict=True) if not fine]
    if broken:
        raise HarnessError(
            f"component '{component}' has weights that are NaN or infinite: {_some(broken)}",
            "download the component again; weights that overflow float16 need bfloat16: --dtype",
        )


def _finite(value: Tensor) -> Tensor:
    import torch

    if value.element_size() == 1:  # float8, for which there are no reductions
        flat = value.reshape(-1).split(_CHUNK)
        return torch.stack([_finite(part.to(torch.float16)) for part in flat]).all()
    low, high = torch.aminmax(value)  # NaN goes through
    return torch.isfinite(low) & torch.isfinite(high)


def _some(names: Iterable[str]) -> str:
    """The first three of the names, and how many more."""
    names = list(names)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
