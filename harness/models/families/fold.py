"""Folding a channel scale of a shared input into whatever produces that input.

``fold_scale_`` makes the producer emit ``X / s`` and multiplies the consumers' weights by ``s``:
the block computes the same function. The rules are PTQ4DiT's offline re-parameterisation (arXiv
2405.16005, eq. 13, 19-21) with the constant 1 of ``LN(z) (1 + gamma) + beta`` pushed into the bias
of the modulation linear, or into the block's table where the modulation is shared (adaLN-single).
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from harness.models.families import family_by_name, family_name_of
from harness.models.families.base import InputGroup, linear_at
from harness.models.families.fold_targets import ModulationFold, NormFold, TableFold, ValueFold

if TYPE_CHECKING:
    from collections.abc import Iterable

MODULATION_SCALE = "modulation_scale"
_BUFFER = f".{MODULATION_SCALE}.factor"


@torch.no_grad()
def fold_scale_(block: nn.Module, group: InputGroup, scale: Tensor) -> Tensor | None:
    """Divide the shared input of a group by ``scale``, multiply it into the weights, in place.

    Args:
        block: Transformer block with plain linears.
        group: A group with a fold.
        scale: ``[in_features]``, positive.

    Returns:
        The channel scale that could not be folded and must stay online, ``[in_features]``, 1 where
        it was folded (the weights of the other channels are left as they were); None where all of
        it was folded.

    Raises:
        ValueError: The group has no producer that could take the scale.
    """
    fold, given = group.fold, scale
    if fold is None:
        raise ValueError(f"input group {group.name!r} has no fold target")
    scale, rest = scale.double(), None
    if isinstance(fold, ModulationFold):
        _fold_modulation_(linear_at(block, fold.linear), fold, scale)
    elif isinstance(fold, TableFold):
        scale = _fold_table_(block, fold, scale)
    elif isinstance(fold, NormFold):
        _fold_norm_(block.get_submodule(fold.norm), scale)
    else:
        folded = _fold_value_(block, fold, scale)
        if fold.leading:
            scale = torch.cat([scale[:folded], torch.ones_like(scale[folded:])])
            rest = torch.cat([torch.ones_like(given[:folded]), given[folded:]])
    for name in group.linears:
        scale_columns_(linear_at(block, name), scale)
    return rest


def scale_columns_(linear: nn.Linear, scale: Tensor) -> None:
    """Multiply input column j of a linear by ``scale[j]``, in double precision."""
    weight = linear.weight
    weight.copy_(weight.double() * scale.to(weight.device))


class ModulationScale(nn.Module):
    """Factors on the shared modulation of one block, applied whenever the block is called.

    Args:
        factor: ``[rows, width]``, 1 for rows that are left alone.
        fold: Where the modulation is.
    """

    factor: Tensor

    def __init__(self, factor: Tensor, fold: TableFold) -> None:
        super().__init__()
        self.register_buffer("factor", factor.float())
        self.argument, self.upcast = fold.argument, fold.upcast

    def forward(self, modulation: Tensor) -> Tensor:
        """Scale the modulation, whatever its leading shape."""
        wide = modulation.to(torch.promote_types(modulation.dtype, torch.float32))
        scaled = (wide.reshape(-1, *self.factor.shape) * self.factor).reshape(wide.shape)
        # a block that adds its table in single precision would round nothing in between
        return scaled if self.upcast else scaled.to(modulation.dtype)


def attach_modulation_scale_(block: nn.Module, factor: Tensor, fold: TableFold) -> ModulationScale:
    """Make a block scale its shared modulation by ``[rows, width]``, instead of earlier factors."""
    attached = MODULATION_SCALE in dict(block.named_children())
    scale = ModulationScale(factor, fold)
    block.add_module(MODULATION_SCALE, scale)
    if not attached:
        block.register_forward_pre_hook(_scale_modulation, with_kwargs=True)
    return scale


def restore_modulation_scales_(transformer: nn.Module, names: Iterable[str]) -> None:
    """Attach the modulation scales that a saved state names, to be filled by loading it.

    Args:
        transformer: A denoiser as it was built.
        names: Names of the saved tensors.
    """
    found = [name.removesuffix(_BUFFER) for name in names if name.endswith(_BUFFER)]
    if not found:
        return
    facts = family_by_name(family_name_of(type(transformer).__name__))
    for name in found:
        block = transformer.get_submodule(name)
        fold = next(g.fold for g in facts.groups(block) if isinstance(g.fold, TableFold))
        table = block.get_parameter(fold.table)
        ones = torch.ones(fold.rows, table.numel() // fold.rows, device=table.device)
        attach_modulation_scale_(block, ones, fold)


def _scale_modulation(
    block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Forward pre-hook; a function of the module, so that a copied block scales by its own copy."""
    scale = block.get_submodule(MODULATION_SCALE)
    if not isinstance(scale, ModulationScale):
        raise TypeError(f"'{MODULATION_SCALE}' is a {type(scale).__name__}")
    if scale.argument in kwargs:
        return args, {**kwargs, scale.argument: scale(kwargs[scale.argument])}
    place = list(inspect.signature(block.forward).parameters).index(scale.argument)
    return (*args[:place], scale(args[place]), *args[place + 1 :]), kwargs


def _fold_table_(block: nn.Module, fold: TableFold, scale: Tensor) -> Tensor:
    """Scale table and shared part; return the scale as the stored factor rounds it."""
    table = block.get_parameter(fold.table)
    rows = table.double().reshape(fold.rows, -1).clone()
    before = dict(block.named_children()).get(MODULATION_SCALE)
    if isinstance(before, ModulationScale):
        factor = before.factor.clone()
    else:
        factor = torch.ones(rows.shape, dtype=torch.float32, device=table.device)
    shift, gain = fold.pair
    old = factor[shift].double()
    factor[shift] = factor[gain] = (old / scale.to(table.device)).float()
    change = factor[shift].double() / old
    rows[shift] *= change
    rows[gain] = (1 + rows[gain]) * change - 1
    table.copy_(rows.reshape(table.shape))
    attach_modulation_scale_(block, factor, fold)
    return 1 / change


def _fold_norm_(norm: nn.Module, scale: Tensor) -> None:
    for name in ("weight", "bias"):
        value = getattr(norm, name, None)
        if value is not None:
            value.copy_(value.double() / scale.to(value.device))


def _fold_modulation_(linear: nn.Linear, fold: ModulationFold, scale: Tensor) -> None:
    weights = linear.weight.double().chunk(fold.chunks)
    biases = linear.bias.double().chunk(fold.chunks)
    weight, bias = [w.clone() for w in weights], [b.clone() for b in biases]
    scale = scale.to(weight[0].device)
    for shift, gain in fold.pairs:
        weight[shift] /= scale[:, None]
        bias[shift] /= scale
        weight[gain] /= scale[:, None]
        bias[gain] = (1 + bias[gain]) / scale - 1
    linear.weight.copy_(torch.cat(weight))
    linear.bias.copy_(torch.cat(bias))


def _fold_value_(block: nn.Module, fold: ValueFold, scale: Tensor) -> int:
    """Scale the value projections; return how many channels they make."""
    width = 0
    for name in fold.linears:
        linear = linear_at(block, name)
        width = linear.out_features
        own = scale[:width].to(linear.weight.device)
        linear.weight.copy_(linear.weight.double() / own[:, None])
        if linear.bias is not None:
            linear.bias.copy_(linear.bias.double() / own)
    return width
