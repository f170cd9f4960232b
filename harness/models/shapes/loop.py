"""The training loop that every stage shares: schedule, clipping, averaging, checkpoints, resume.

The learning rate is warmed up, constant, then falls to `floor` of it over the last `cooldown` steps
(Hu et al. 2024, MiniCPM, section 4: warmup-stable-decay). The constant part does not depend on the
number of steps, so a run can be prolonged or cut short and stays the run that one command repeats.
Every step draws its batch from a generator seeded by (seed, stage, step): a resumed run sees what
an uninterrupted one would have seen.
"""

from __future__ import annotations

import time
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from harness.models.shapes import checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One stage of the training: where it lives, how long it is, when it must stop.

    `minutes` stops this call, not the stage: the same command goes on from there.
    """

    folder: Path
    stage: str
    steps: int
    cooldown: int
    floor: float = 0.0
    warmup: int = 50
    seed: int = 0
    minutes: float | None = None
    save_every_s: float = 120.0
    log_every: int = 25
    clip_norm: float = 1.0
    ema_decay: float = 0.995

    @property
    def state_path(self) -> Path:
        """Return the file of the newest checkpoint."""
        return self.folder / f"{self.stage}.pt"

    @property
    def log_path(self) -> Path:
        """Return the file of the loss curve, one JSON line every `log_every` steps."""
        return self.folder / f"{self.stage}.log.jsonl"


def learning_rate_factor(step: int, run: Run) -> float:
    """Return the factor of the learning rate at a step: warmup, constant, linear to the floor."""
    warm = min(1.0, (step + 1) / max(run.warmup, 1))
    left = max(0.0, min(1.0, (run.steps - step) / max(run.cooldown, 1)))
    return min(warm, run.floor + (1.0 - run.floor) * left)


def step_rng(run: Run, step: int) -> np.random.Generator:
    """Return the numpy generator of one step."""
    return np.random.default_rng([run.seed, zlib.crc32(run.stage.encode()), step])


def step_generator(run: Run, step: int) -> torch.Generator:
    """Return the torch generator of one step."""
    seed = int(step_rng(run, step).integers(2**62))
    return torch.Generator().manual_seed(seed)


@dataclass(kw_only=True, slots=True)
class Average:
    """An exponential moving average of a module's parameters, warmed up over the first steps."""

    module: nn.Module
    decay: float
    shadow: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Start from the parameters as they are."""
        self.shadow = {k: v.detach().clone() for k, v in self.module.state_dict().items()}

    def update_(self, step: int) -> None:
        """Move the average towards the parameters."""
        decay = min(self.decay, (1 + step) / (10 + step))
        state = self.module.state_dict()
        names = [k for k, v in self.shadow.items() if v.is_floating_point()]
        torch._foreach_lerp_(
            [self.shadow[k] for k in names], [state[k].detach() for k in names], 1 - decay
        )


@dataclass(kw_only=True, slots=True)
class Progress:
    """How far a stage has come."""

    step: int = 0
    seconds: float = 0.0
    finished: bool = False


def train_(
    run: Run,
    module: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    step_loss: Callable[[int], tuple[Tensor, Mapping[str, Tensor | float]]],
    hooks: Iterable[tuple[int, Callable[[int], None]]] = (),
) -> tuple[Average, Progress]:
    """Train a module in place until the stage is finished or this call's minutes are over.

    Args:
        run: The stage.
        module: What is trained, averaged and saved.
        optimizers: Their groups carry `base_lr`.
        step_loss: Maps a step to the loss and the numbers to log.
        hooks: Pairs of a step and a function called once when that step begins.

    Returns:
        The average and how far the stage has come.
    """
    average = Average(module=module, decay=run.ema_decay)
    progress = _resume_(run, module, optimizers, average)
    begun_s = saved_s = time.monotonic()
    before_s = progress.seconds
    parameters = [p for p in module.parameters() if p.requires_grad]
    at_step = dict(hooks)
    while progress.step < run.steps:
        step = progress.step
        if step in at_step:
            at_step[step](step)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * learning_rate_factor(step, run)
        loss, numbers = step_loss(step)
        torch.autograd.backward(loss)
        norm = nn.utils.clip_grad_norm_(parameters, run.clip_norm, error_if_nonfinite=True)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        average.update_(step)
        progress.step = step + 1
        now_s = time.monotonic()
        progress.seconds = before_s + now_s - begun_s
        if step % run.log_every == 0:
            line = {k: round(float(v), 6) for k, v in numbers.items()}
            head = {"step": step, "s": round(progress.seconds, 1), "loss": round(loss.item(), 6)}
            checkpoint.append_line(run.log_path, head | {"norm": round(float(norm), 4)} | line)
        over = run.minutes is not None and now_s - begun_s > run.minutes * 60
        if over or now_s - saved_s > run.save_every_s:
            _save(run, module, optimizers, average, progress)
            saved_s = now_s
        if over:
            return average, progress
    if not progress.finished:
        progress.finished = True
        _save(run, module, optimizers, average, progress)
    return average, progress


def _save(
    run: Run,
    module: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    average: Average,
    progress: Progress,
) -> None:
    checkpoint.publish(
        run.state_path,
        {
            "module": module.state_dict(),
            "average": average.shadow,
            "optimizers": [o.state_dict() for o in optimizers],
            "step": progress.step,
            "seconds": progress.seconds,
            "finished": progress.finished,
        },
    )


def _resume_(
    run: Run, module: nn.Module, optimizers: list[torch.optim.Optimizer], average: Average
) -> Progress:
    state = checkpoint.read(run.state_path)
    if state is None:
        return Progress()
    module.load_state_dict(state["module"])
    average.shadow = state["average"]
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    step = int(state["step"])
    # A stage that is prolonged is no longer finished; one cut off after its last step not yet.
    finished = bool(state["finished"]) and step >= run.steps
    return Progress(step=step, seconds=state["seconds"], finished=finished)
