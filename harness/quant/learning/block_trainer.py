"""Training the parameters of one block against the full-precision block's outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from harness.errors import HarnessError
from harness.quant.calibration.capture import run_block

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from harness.models.block_input import BlockInput
    from harness.models.families.base import Family


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockTask:
    """What a block is trained on, one entry for each sample.

    Attributes:
        inputs: Block inputs.
        targets: Full-precision outputs.
        weights: Loss weight of tokens, ``[branches, tokens]`` by stream; None weighs all alike.
    """

    inputs: Sequence[BlockInput]
    targets: Sequence[BlockInput]
    weights: Sequence[dict[str, Tensor]] | None = None


def reconstruction_loss(
    out: dict[str, Tensor], target: dict[str, Tensor], weights: dict[str, Tensor] | None
) -> Tensor:
    """Mean over tokens of the weighted squared error.

    1/n sum_j lambda_j ||y_j - y^_j||^2 (S2Q-VDiT, arXiv 2508.04016, eq. 10).

    Args:
        out: Outputs by stream, ``[batch, tokens, width]``.
        target: The same of the full-precision block.
        weights: ``[batch, tokens]`` by stream, or None.
    """
    total, tokens = torch.zeros((), device=next(iter(out.values())).device), 0
    for name, value in out.items():
        error = (value.float() - target[name].float()).square().sum(-1)
        total = total + (error if weights is None else error * weights[name]).sum()
        tokens += error.numel()
    return total / tokens


def train_block(
    block: nn.Module,
    family: Family,
    task: BlockTask,
    groups: Sequence[dict[str, Any]],
    *,
    optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
    steps: int,
    generator: torch.Generator,
    floor: float = 0.0,
    before_step: Callable[[int], Tensor | None] = lambda step: None,
) -> list[float]:
    """Minimise the reconstruction loss, one sample a step, epochs shuffled, cosine learning rates.

    Inputs are widened to single precision, whatever the model runs in.

    Args:
        block: Trainable form of the block, in single precision.
        family: Its facts.
        task: Data.
        groups: Optimizer parameter groups, each with its ``lr`` and, where it is not ``floor``, the
            final fraction of it, ``floor``; 1 keeps the rate constant.
        optimizer: Class of the optimizer.
        steps: Optimizer steps.
        generator: Order of the samples.
        floor: Final learning rate as a fraction of the first.
        before_step: Called with the step index before each forward pass; may return a term to add
            to the loss.

    Returns:
        The reconstruction loss of every step.

    Raises:
        HarnessError: The loss is not finite.
    """
    filled = [g for g in ({**g, "params": list(g["params"])} for g in groups) if g["params"]]
    if not filled or steps == 0:
        return []
    optimiser = optimizer(filled)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimiser, [cosine_schedule(steps, float(group.get("floor", floor))) for group in filled]
    )
    curve: list[float] = []
    for step, index in zip(range(steps), shuffled(len(task.inputs), generator), strict=False):
        extra = before_step(step)
        out = run_block(block, family, task.inputs[index].in_float32())
        weights = task.weights[index] if task.weights else None
        loss = reconstruction_loss(out, task.targets[index].streams, weights)
        optimiser.zero_grad(set_to_none=True)
        (loss if extra is None else loss + extra).backward()
        optimiser.step()
        scheduler.step()
        curve.append(float(loss.detach()))
        if not torch.isfinite(loss.detach()):
            raise HarnessError(
                f"block training diverged at step {step} (loss {curve[-1]})",
                "lower the learning rates in the method's options",
            )
    return curve


def cosine_schedule(steps: int, floor: float) -> Callable[[int], float]:
    """Factor on a learning rate at a step: a cosine from 1 to ``floor``."""
    return lambda step: _cosine(step / steps, floor)


def _cosine(progress: float, floor: float) -> float:
    return floor + (1 - floor) * 0.5 * (1 + float(torch.cos(torch.tensor(progress * torch.pi))))


def shuffled(count: int, generator: torch.Generator) -> Iterator[int]:
    """Indices without end, epoch by epoch in random order."""
    while True:
        yield from torch.randperm(count, generator=generator).tolist()
