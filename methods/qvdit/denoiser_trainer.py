"""Training quantized layers through the whole denoiser, against its full-precision output.

What Q-VDiT calls model-wise reconstruction. Calls and targets lie on disk; one call of the batch is
in memory at a time, and its activations are recomputed block by block where that is asked for.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from harness.api import HarnessError
from harness.quant import BlockInput, branch_turns, cosine_schedule, shuffled
from methods.qvdit.checkpoint import Checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from harness.quant import CalibrationPool, Kept, Sample

LATENT = "hidden_states"  # of every diffusers denoiser: the latent that it is called with
OUTPUT = "output"
"""Stream under which the full-precision output is kept beside the arguments of the call."""

Terms = dict[str, Tensor]
"""Terms of a loss by name; their sum is minimised."""


def denoiser_calls(
    pool: CalibrationPool, samples: Sequence[Sample], rule: str, device: torch.device
) -> Iterator[BlockInput]:
    """Arguments of the denoiser at chosen samples, the guidance branches taken as asked.

    Args:
        pool: Recorded trajectories.
        samples: Which candidates.
        rule: ``both``, ``alternate`` or ``cond``, as in ``branch_turns``.
        device: Where tensors go.

    Yields:
        The call of each sample, its latent as the only stream.
    """
    turns: list[int | None] = []
    for i, sample in enumerate(samples):
        arguments = pool.call(sample, device).arguments
        streams = {LATENT: arguments.pop(LATENT)}
        call = BlockInput(sample=sample, streams=streams, fixed=arguments)
        turns = turns or branch_turns(samples, call.branches, rule)
        turn = turns[i]
        yield call if turn is None else call.branch(turn)


@torch.no_grad()
def with_output(denoiser: nn.Module, call: BlockInput) -> BlockInput:
    """The call with the denoiser's output on it."""
    return replace(call, streams={**call.streams, OUTPUT: run_denoiser(denoiser, call)})


def run_denoiser(denoiser: nn.Module, call: BlockInput) -> Tensor:
    """Output of the denoiser, ``[branches, ...]``."""
    out: Tensor = denoiser(**{LATENT: call.streams[LATENT]}, **call.fixed)[0]
    return out


def train_denoiser(
    denoiser: nn.Module,
    calls: Sequence[BlockInput],
    groups: Sequence[dict[str, Any]],
    loss: Callable[[Tensor, BlockInput], Terms],
    *,
    steps: int,
    batch: int,
    generator: torch.Generator,
    checkpointing: bool,
    progress: Callable[[float, str], None],
    kept: Kept | None = None,
) -> dict[str, list[float]]:
    """Minimise a loss of the denoiser's output with AdamW; learning rates fall to 0 by a cosine.

    Args:
        denoiser: Trainable form, in single precision.
        calls: With the full-precision output on them.
        groups: Optimizer parameter groups, each with its ``lr``.
        loss: Terms from the output and the call.
        steps: Optimizer steps.
        batch: Calls a step; gradients are accumulated.
        generator: Order of the calls.
        checkpointing: Keep block inputs only and compute blocks again on the way back.
        progress: Progress callback.
        kept: Where the training is kept every few minutes, to go on from there to the same bits.

    Returns:
        Every term at every step, mean over the batch.

    Raises:
        HarnessError: The loss is not finite.
    """
    filled = [g for g in ({**g, "params": list(g["params"])} for g in groups) if g["params"]]
    if not filled or steps == 0:
        return {}
    if checkpointing:
        denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
    optimiser = torch.optim.AdamW(filled)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, cosine_schedule(steps, 0.0))
    curves: dict[str, list[float]] = {}
    order = shuffled(len(calls), generator)
    checkpoint = Checkpoint(kept, filled, optimiser, scheduler, curves)
    start = checkpoint.restore_()
    for _ in range(start * batch):
        next(order)
    for step in range(start, steps):
        progress(step / steps, f"training step {step + 1}/{steps}")
        optimiser.zero_grad(set_to_none=True)
        sums: dict[str, float] = {}
        for index in [next(order) for _ in range(batch)]:
            call = calls[index].in_float32()
            terms = loss(run_denoiser(denoiser, call), call)
            (torch.stack(list(terms.values())).sum() / batch).backward()
            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + float(term.detach()) / batch
        if not all(map(_finite, sums.values())):
            raise HarnessError(
                f"training of the denoiser diverged at step {step} ({sums})",
                "lower the learning rates in the method's options",
            )
        optimiser.step()
        scheduler.step()
        for name, value in sums.items():
            curves.setdefault(name, []).append(value)
        checkpoint.save_now_and_then(step + 1)
    return curves


def _finite(value: float) -> bool:
    return abs(value) < float("inf")
