"""Muon for convolution kernels (Jordan et al. 2024); torch's own takes matrices only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024, "Muon", coefficients of the quintic
STEPS = 5


def orthogonal(matrix: Tensor) -> Tensor:
    """Return about the nearest matrix whose singular values are all one, same shape [n, m]."""
    a, b, c = NEWTON_SCHULZ
    x = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    for _ in range(STEPS):
        product = x @ x.T
        x = a * x + (b * product + c * product @ product) @ x
    return x.T if tall else x


class KernelMuon(torch.optim.Optimizer):
    """Muon on kernels flattened to [out channels, everything else], with Nesterov momentum."""

    def __init__(self, groups: Iterable[dict[str, object]], lr: float, momentum: float = 0.95):
        super().__init__(groups, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every kernel by the orthogonal part of its averaged gradient."""
        for group in self.param_groups:
            for kernel in group["params"]:
                if kernel.grad is None:
                    continue
                state = self.state[kernel]
                if not state:
                    state["average"] = torch.zeros_like(kernel)
                average = state["average"].mul_(group["momentum"]).add_(kernel.grad)
                ahead = kernel.grad.add(average, alpha=group["momentum"])
                update = orthogonal(ahead.flatten(1))
                # A tall matrix is scaled up, so that its rows move as far as a square one's.
                scale = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
                kernel.add_(update.view_as(kernel), alpha=-group["lr"] * scale)
