"""Training the parameters of one block against the full-precision block's outputs."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from harness.errors import HarnessError
from harness.quant.calibration.capture import run_block
from harness.quant.learning.recompute import recomputing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from harness.models.block_input import BlockInput
    from harness.models.families.base import Family

REPORT_INTERVAL_S = 1.0
"""Least seconds between two reports of the training's progress."""


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
    dtype: torch.dtype = torch.float32,
    progress: Callable[[float, str], None] = lambda share, text: None,
) -> list[float]:
    """Minimise the reconstruction loss, one sample a step, epochs shuffled, cosine learning rates.

    Of a block's activations the inputs of its parts are kept; the rest is computed again on the way
    back (``recomputing``).

    Args:
        block: Trainable form of the block, in ``dtype``.
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
        dtype: Precision that inputs are brought to, whatever the model runs in: single, or bfloat16
            for the products and single for what is trained.
        progress: Called after a step with the share of the steps that are done, and with what a
            step takes; at most once a second.

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
    timed = _TimedSteps(steps, progress)
    for step, index in zip(range(steps), shuffled(len(task.inputs), generator), strict=False):
        extra = before_step(step)
        weights = task.weights[index] if task.weights else None
        optimiser.zero_grad(set_to_none=True)
        with recomputing(block, family):
            out = run_block(block, family, in_precision(task.inputs[index], dtype))
            loss = reconstruction_loss(out, task.targets[index].streams, weights)
            (loss if extra is None else loss + extra).backward()
        optimiser.step()
        scheduler.step()
        curve.append(_finite(loss, step))
        timed.done(step + 1)
    return curve


def _finite(loss: Tensor, step: int) -> float:
    value = float(loss.detach())
    if not math.isfinite(value):
        raise HarnessError(
            f"block training diverged at step {step} (loss {value})",
            "lower the learning rates in the method's options",
        )
    return value


def in_precision(given: BlockInput, dtype: torch.dtype) -> BlockInput:
    """A sample for training in single precision or bfloat16.

    Args:
        given: The sample in the model's precision.
        dtype: float32 widens every floating point tensor; bfloat16 narrows the streams and single
            tensors of their precision (tables of positions, which come in tuples, stay).
    """
    if dtype == torch.float32:
        return given.in_float32()
    own = next(iter(given.streams.values())).dtype

    def narrow(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.dtype == own else value

    return replace(
        given,
        streams={k: v.to(dtype) for k, v in given.streams.items()},
        fixed={k: narrow(v) for k, v in given.fixed.items()},
    )


class _TimedSteps:
    """Says what training steps take; the first, which also warms up, counts until others did."""

    def __init__(self, steps: int, progress: Callable[[float, str], None]) -> None:
        self.steps, self.progress = steps, progress
        self.started = self.said = time.perf_counter()
        self.warm: float | None = None

    def done(self, step: int) -> None:
        """A step is done, counted from 1; its loss has been read, so the device is through."""
        now = time.perf_counter()
        if self.warm is None:
            self.warm, each = now, now - self.started
        else:
            each = (now - self.warm) / (step - 1)
        if now - self.said >= REPORT_INTERVAL_S or step == 1:
            self.said = now
            left = each * (self.steps - step)
            self.progress(
                step / self.steps,
                f"step {step}/{self.steps}, {duration(each)} a step, {duration(left)} left here",
            )


def duration(seconds: float) -> str:
    """Seconds as one reads them: ``0.41 s``, ``12 s``, ``8 min``, ``2.4 h``."""
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def cosine_schedule(steps: int, floor: float) -> Callable[[int], float]:
    """Factor on a learning rate at a step: a cosine from 1 to ``floor``."""
    return lambda step: _cosine(step / steps, floor)


def _cosine(progress: float, floor: float) -> float:
    return floor + (1 - floor) * 0.5 * (1 + float(torch.cos(torch.tensor(progress * torch.pi))))


def shuffled(count: int, generator: torch.Generator) -> Iterator[int]:
    """Indices without end, epoch by epoch in random order."""
    while True:
        yield from torch.randperm(count, generator=generator).tolist()
