"""Peak memory of a walk over few and over many samples, printed as JSON; run by ``test_walk``.

A process of its own, because memory that earlier tests freed stays resident and would hide a peak.
"""

from __future__ import annotations

import gc
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from harness.bits import BitSpec
from harness.measure.memory import peak_memory
from harness.method import QuantContext
from harness.models.block_input import Sample
from harness.models.families.base import InputGroup
from harness.models.trajectories import DenoiserCall
from harness.quant.calibration.walk import Walk

if TYPE_CHECKING:
    from harness.models.block_input import BlockInput

CPU = torch.device("cpu")
WIDTH, TOKENS = 256, 2048  # 2 MiB a sample


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states + self.linear(hidden_states)


class _Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([_Block(), _Block()])

    def forward(self, hidden_states: Tensor) -> Tensor:
        for block in self.blocks:
            hidden_states = block(hidden_states=hidden_states)
        return hidden_states


class _OneStream:
    streams = ("hidden_states",)
    video_stream = "hidden_states"

    def blocks(self, transformer: nn.Module) -> list[tuple[str, nn.Module]]:
        return [(f"blocks.{i}", b) for i, b in enumerate(transformer.get_submodule("blocks"))]

    def groups(self, block: nn.Module) -> tuple[InputGroup, ...]:
        return (InputGroup(name="in", role="feed_forward_in", linears=("linear",)),)

    def advance(self, transformer: Any, index: int, given: BlockInput, out: Any) -> BlockInput:
        return given.with_streams(out)


@dataclass
class _Pool:
    """Makes its calls when asked, so that it holds nothing itself."""

    prompts: tuple[str, ...] = ()
    forwards: int = 0
    steps: int = 1

    def call(self, sample: Sample, device: torch.device | None = None) -> DenoiserCall:
        generator = torch.Generator().manual_seed(sample.prompt)
        x = torch.randn(1, TOKENS, WIDTH, generator=generator)
        return DenoiserCall(arguments={"hidden_states": x}, branches=1)


def peak_of(samples: int, scratch: Path, *, hold: bool) -> int:
    """Resident bytes that a walk adds at its peak; ``hold`` keeps the samples, as a list would."""
    ctx: Any = QuantContext(
        bits=BitSpec.parse("w4a4"), options=None, family=_OneStream(),  # type: ignore[arg-type]
        device=CPU, pool=_Pool(), scratch=scratch,  # type: ignore[arg-type]
    )  # fmt: skip
    gc.collect()
    kept: list[Tensor] = []
    with peak_memory("cpu") as peak:
        before = peak()
        for step in Walk(_Denoiser(), ctx, [Sample(i, 0) for i in range(samples)]):
            for given in step.inputs:
                kept = [*kept, given.streams["hidden_states"].clone()] if hold else []
        return peak() - before


def main(scratch: Path) -> None:
    """Print the peaks of 4 samples, of 40, and of 40 that are held."""
    peak_of(4, scratch, hold=False)  # what is allocated once and kept, before the comparison
    few, many = (peak_of(n, scratch, hold=False) for n in (4, 40))
    held = peak_of(40, scratch, hold=True)
    print(json.dumps({"few": few, "many": many, "held": held}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
