"""Block inputs held in lists: what ``Walk`` does with files, written the short way for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from harness.quant.calibration.capture import branch_turns, each_first_block_input, run_block

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from harness.models.block_input import BlockInput, Sample
    from harness.models.families.base import Family
    from harness.models.trajectories import CalibrationPool


def first_block_inputs(
    transformer: nn.Module, family: Family, pool: CalibrationPool, samples: Sequence[Sample]
) -> list[BlockInput]:
    return list(each_first_block_input(transformer, family, pool, samples))


def split_branches(inputs: Sequence[BlockInput], rule: str) -> list[BlockInput]:
    turns = branch_turns([given.sample for given in inputs], inputs[0].branches, rule)
    return [
        given if turn is None else given.branch(turn)
        for given, turn in zip(inputs, turns, strict=True)
    ]


@torch.no_grad()
def run_block_over(
    block: nn.Module, family: Family, inputs: Sequence[BlockInput]
) -> list[BlockInput]:
    return [given.with_streams(run_block(block, family, given)) for given in inputs]
