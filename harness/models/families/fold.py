"""Folding a channel scale of a shared input into whatever produces that input.

``fold_scale_`` makes the producer emit ``X / s`` and multiplies the consumers' weights by ``s``:
the block computes the same function. The rules are PTQ4DiT's offline re-parameterisation (arXiv
2405.16005, eq. 13, 19-21) with the constant 1 of ``LN(z) (1 + gamma) + beta`` pushed into the bias
of the modulation linear.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness.models.families.base import InputGroup, ModulationFold, ValueFold, linear_at


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
    if group.fold is None:
        raise ValueError(f"input group {group.name!r} has no fold target")
    scale = scale.double()
    if isinstance(group.fold, ModulationFold):
        _fold_modulation_(linear_at(block, group.fold.linear), group.fold, scale)
    else:
        _fold_value_(block, group.fold, scale)
    for name in group.linears:
        scale_columns_(linear_at(block, name), scale)
    return None


def scale_columns_(linear: nn.Linear, scale: Tensor) -> None:
    """Multiply input column j of a linear by ``scale[j]``, in double precision."""
    weight = linear.weight
    weight.copy_(weight.double() * scale.to(weight.device))


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


def _fold_value_(block: nn.Module, fold: ValueFold, scale: Tensor) -> None:
    for name in fold.linears:
        linear = linear_at(block, name)
        scale = scale.to(linear.weight.device)
        linear.weight.copy_(linear.weight.double() / scale[:, None])
        if linear.bias is not None:
            linear.bias.copy_(linear.bias.double() / scale)
