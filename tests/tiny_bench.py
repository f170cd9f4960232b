"""What tests of single methods need besides the bench of the conformance battery."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from harness.models.families import family_by_name
from harness.models.families.base import linear_at
from harness.quant.calibration.capture import run_block
from harness.quant.calibration.samples import uniform_samples
from tests.blocks import first_block_inputs, split_branches

if TYPE_CHECKING:
    from harness.testing.conformance import Bench

QUICK: dict[str, Any] = {"samples": 4, "timesteps": 2}


def linear_inputs(bench: Bench) -> dict[str, Tensor]:
    """What every target linear of the full-precision model reads at the quick samples."""
    facts, transformer = family_by_name(bench.family), bench.pipeline.transformer
    samples = uniform_samples(bench.pool, QUICK["samples"], QUICK["timesteps"])
    inputs = split_branches(
        first_block_inputs(transformer, facts, bench.pool, samples), "alternate"
    )
    found: dict[str, list[Tensor]] = {}
    for name, block in facts.blocks(transformer):
        linears = [linear for group in facts.groups(block) for linear in group.linears]
        handles = [
            linear_at(block, linear).register_forward_pre_hook(
                _keep(found.setdefault(f"{name}.{linear}", []))
            )
            for linear in linears
        ]
        with torch.no_grad():
            inputs = [given.with_streams(run_block(block, facts, given)) for given in inputs]
        for handle in handles:
            handle.remove()
    return {name: torch.cat(parts) for name, parts in found.items()}


def _keep(parts: list[Tensor]) -> Any:
    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        del module
        parts.append(args[0].flatten(0, -2).clone())

    return hook
