"""Nests of tensors, numbers and text in one safetensors file, exact to the bit.

Importing this module needs no torch.
"""

from __future__ import annotations

import json
import os
import secrets
from typing import TYPE_CHECKING, Any

from harness.store.durable import fsync_path

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor

_NEST = "nest"


def flatten(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Replace every tensor of a nest by its name and put it, on the CPU, under that name.

    Dictionaries keep their order and may have any plain keys. A named tuple is refused, since it
    would come back as a plain one.

    Raises:
        TypeError: A value is neither tensor, number, text nor a nest of those.
    """
    import torch

    if isinstance(value, torch.Tensor):
        name = f"t{len(tensors)}"
        # a copy: safetensors refuses tensors that share memory, as branches of a batch do
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name, "cpu": value.device.type == "cpu"}
    if isinstance(value, dict):
        return {"dict": [[_plain(k), flatten(v, tensors)] for k, v in value.items()]}
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [flatten(v, tensors) for v in value]}
    return {"plain": _plain(value)}


def unflatten(value: dict[str, Any], tensors: dict[str, Tensor], device: torch.device) -> Any:
    """Undo ``flatten``; a tensor that was not on the CPU goes to ``device``."""
    if "tensor" in value:
        found = tensors[value["tensor"]]
        return found if value["cpu"] else found.to(device)
    if "dict" in value:
        return {k: unflatten(v, tensors, device) for k, v in value["dict"]}
    if "plain" in value:
        return value["plain"]
    (kind, held), *_ = value.items()
    items = [unflatten(v, tensors, device) for v in held]
    return tuple(items) if kind == "tuple" else items


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be kept on disk")


def write_nest(path: Path, value: Any) -> None:
    """Write a nest so that a reader sees the old file or the new one, also after a power cut.

    Raises:
        TypeError: A value is neither tensor, number, text nor a nest of those.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    told = json.dumps(flatten(value, tensors))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        save_file(tensors, temporary, metadata={_NEST: told})
        fsync_path(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_path(path.parent)


def read_nest(path: Path, device: torch.device) -> Any:
    """Read back what ``write_nest`` wrote.

    Args:
        path: The file.
        device: Where tensors go that did not lie on the CPU.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not one that ``write_nest`` wrote.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(path)
    try:
        with safe_open(path, framework="pt") as file:
            told = json.loads((file.metadata() or {})[_NEST])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, OSError) as cause:
        raise ValueError(f"'{path}' is damaged ({cause.__class__.__name__})") from cause
    return unflatten(told, tensors, device)
