"""Statistics of the inputs of a block's linears over calibration samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from harness.models.families.base import Family
from harness.quant.capture import BlockInput, observing, run_block


@torch.no_grad()
def channel_absmax(
    block: nn.Module, family: Family, inputs: Sequence[BlockInput]
) -> dict[str, Tensor]:
    """Mean over samples of the per-channel maximum over tokens, max_token |x_j|.

    Returns:
        ``[in_features]`` by input group.
    """
    first = {group.linears[0]: group.name for group in family.groups(block)}
    sums: dict[str, Tensor] = {}

    def see(linear: str, x: Tensor) -> None:
        peak = x.reshape(-1, x.shape[-1]).abs().amax(0).float()
        sums[first[linear]] = sums.get(first[linear], torch.zeros_like(peak)) + peak

    with observing(block, list(first), see):
        for given in inputs:
            run_block(block, family, given)
    return {name: total / len(inputs) for name, total in sums.items()}
