"""Q-VDiT's training on disk, so that one that was ended goes on to the same bits."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    from harness.quant import Kept

EVERY_S = 120.0
"""Seconds between two checkpoints; of a few trained numbers a row, so that they cost little."""

_NAME = "training of the denoiser"


class Checkpoint:
    """Parameters, optimizer and curves of a training.

    Args:
        kept: What the calibration has finished; None keeps nothing.
        groups: Parameter groups that the optimizer was given.
        optimiser: The optimizer.
        scheduler: Its learning rates.
        curves: Terms of the loss by name.
    """

    def __init__(
        self,
        kept: Kept | None,
        groups: Sequence[dict[str, Any]],
        optimiser: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LambdaLR,
        curves: dict[str, list[float]],
    ) -> None:
        self._kept, self._optimiser, self._scheduler = kept, optimiser, scheduler
        self._curves = curves
        self._parameters: list[Tensor] = [p for group in groups for p in group["params"]]
        self._saved = time.monotonic()

    def restore_(self) -> int:
        """Take over what was trained before, in place; return the number of steps that were."""
        if self._kept is None or not self._parameters:
            return 0
        found = self._kept.load(_NAME, self._parameters[0].device)
        if found is None:
            return 0
        for parameter, value in zip(self._parameters, found["parameters"], strict=True):
            parameter.data.copy_(value)
        self._optimiser.load_state_dict(found["optimizer"])
        self._scheduler.load_state_dict(found["scheduler"])
        self._curves |= found["curves"]
        steps: int = found["steps"]
        return steps

    def save_now_and_then(self, steps: int) -> None:
        """Keep the training after so many steps, unless that was done a short time ago."""
        if self._kept is None or time.monotonic() - self._saved < EVERY_S:
            return
        self._saved = time.monotonic()
        self._kept.save(
            _NAME,
            {
                "steps": steps,
                "parameters": self._parameters,
                "optimizer": self._optimiser.state_dict(),
                "scheduler": self._scheduler.state_dict(),
                "curves": self._curves,
            },
        )
