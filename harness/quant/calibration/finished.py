"""Finished blocks of a walk on disk, so that a calibration that was ended goes on behind them."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, Any

import torch

from harness.models.families.fold import restore_modulation_scales_
from harness.quant.calibration.factors import content_digest
from harness.quant.layers.layers import layer_class, quantized_layers, replace_module_
from harness.store.nest import read_nest, write_nest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from harness.quant.layers.layers import QuantizedLayer
    from harness.store.kept import Kept

_STATE = "state.safetensors"
_TIED = ("low_rank.down", "transforms.")
"""Buffers that layers with one input may hold in common."""


class FinishedBlocks:
    """The record of one walk.

    A block is a file: its quantized layers as an artifact stores them, and of its other tensors
    those that the method changed. The state of the walk is one more file, replaced after each
    block: what it says is finished is finished.

    Args:
        kept: What the calibration has finished.
        name: Name of the walk, one of its own in a calibration.
        transformer: The denoiser.
        state: What the method carries from block to block, by name: generators, dictionaries,
            lists and sets, or objects with ``state_dict`` and ``load_state_dict``.
        device: Where tensors of the state go that did not lie on the CPU.
    """

    def __init__(
        self,
        kept: Kept,
        name: str,
        transformer: nn.Module,
        state: Mapping[str, Any],
        device: torch.device,
    ) -> None:
        self.folder = kept.part(name)
        self._kept, self._transformer, self._state = kept, transformer, state
        self._device = device

    def restore_(self) -> dict[str, Any] | None:
        """Put the finished blocks into the denoiser and the state into the method, in place.

        Returns:
            What the walk told of itself at the last ``commit``; None where no block is finished. A
            damaged record is removed, and said.
        """
        cpu = torch.device("cpu")
        try:
            left = read_nest(self.folder / _STATE, self._device)
            blocks = [read_nest(self._file(i), cpu) for i in range(left["finished"])]
        except FileNotFoundError:
            self._forget()
            return None
        except ValueError as cause:
            print(f"warning: {cause}; the blocks are made again", file=sys.stderr, flush=True)
            self._forget()
            return None
        for held in blocks:
            restore_block_(self._transformer, held)
        for name, target in self._state.items():
            _load_state_(target, left["state"][name])
        told: dict[str, Any] = left["walk"]
        return told

    def commit(self, index: int, block: dict[str, Any], told: dict[str, Any]) -> None:
        """Write that a block is finished.

        Args:
            index: Its place; those before it are written.
            block: From ``block_content``.
            told: What the walk needs besides, plain or tensors.
        """
        write_nest(self._file(index), block)
        state = {name: _state_of(value) for name, value in self._state.items()}
        write_nest(self.folder / _STATE, {"finished": index + 1, "walk": told, "state": state})
        self._kept.tick()

    def _file(self, index: int) -> Path:
        return self.folder / f"block-{index:04d}.safetensors"

    def _forget(self) -> None:
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def content_digests(block: nn.Module) -> dict[str, str]:
    """Digest of every tensor of a block, by which ``block_content`` sees what was changed."""
    return {name: content_digest(value) for name, value in block.state_dict().items()}


def block_content(block: nn.Module, name: str, before: Mapping[str, str]) -> dict[str, Any]:
    """What a method made of a block.

    Args:
        block: The block.
        name: Its qualified name.
        before: ``content_digests`` before the method saw it.
    """
    layers = quantized_layers(block)
    inside = tuple(f"{n}." for n in layers)
    changed = {
        f"{name}.{n}": value
        for n, value in block.state_dict().items()
        if not n.startswith(inside) and before.get(n) != content_digest(value)
    }
    told = {
        f"{name}.{n}": {"kind": layer.kind, "facts": layer.describe(), "tensors": layer.stored()}
        for n, layer in layers.items()
    }
    return {"layers": told, "changed": changed}


@torch.no_grad()
def restore_block_(transformer: nn.Module, held: Mapping[str, Any]) -> None:
    """Put what ``block_content`` gave into a denoiser as it was built, in place."""
    layers: dict[str, QuantizedLayer] = {}
    for name, told in held["layers"].items():
        device = next(transformer.get_submodule(name).parameters()).device
        layer = layer_class(told["kind"]).rebuild(told["facts"], told["tensors"])
        layers[name] = layer.to(device)
        replace_module_(transformer, name, layers[name])
    _tie_(layers)
    changed: dict[str, Tensor] = held["changed"]
    restore_modulation_scales_(transformer, changed)
    own = transformer.state_dict() if changed else {}
    for name, value in changed.items():
        own[name].copy_(value)


def _tie_(layers: Mapping[str, QuantizedLayer]) -> None:
    """Let equal transforms and down-projections be one tensor again, as the method left them."""
    seen: list[Tensor] = []
    for layer in layers.values():
        for name, value in list(layer.named_buffers()):
            if not name.startswith(_TIED) and not any(f".{part}" in name for part in _TIED):
                continue
            same = (v for v in seen if v.dtype == value.dtype and torch.equal(v, value))
            if (first := next(same, None)) is None:
                seen.append(value)
            else:
                owner, _, leaf = name.rpartition(".")
                setattr(layer.get_submodule(owner), leaf, first)


def _state_of(value: Any) -> Any:
    if isinstance(value, torch.Generator):
        return value.get_state()
    if hasattr(value, "state_dict"):
        return value.state_dict()
    return sorted(value) if isinstance(value, set) else value


def _load_state_(target: Any, found: Any) -> None:
    if isinstance(target, torch.Generator):
        target.set_state(found)
    elif hasattr(target, "load_state_dict"):
        target.load_state_dict(found)
    elif isinstance(target, list):
        target[:] = found
    elif isinstance(target, dict | set):
        target.clear()
        target.update(found)
    else:
        raise TypeError(f"a {type(target).__name__} is no state of a walk")
