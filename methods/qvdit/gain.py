"""Where the gain M per frame of Q-VDiT's estimator (arXiv 2505.22167) starts: eta / omega."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from harness.quant import observing, quantize_activation
from methods.qvdit.denoiser_trainer import with_output

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor, nn

    from harness.quant import ActivationSpec, BlockInput
    from methods.qvdit.frames import FrameLayout


def initial_gain(x: Tensor, rounded: Tensor) -> Tensor:
    """Start of M: eta_i / omega_i, ``[batch, frames]``.

    eta_i = softmax_i(1 - rho(X_i, Q(X)_i)) with rho the cosine similarity, omega_i the share of
    frame i in sum |X| (Q-VDiT, TQE).

    Args:
        x: Input of a linear cut into frames, ``[batch, frames, tokens * in_features]``.
        rounded: The same, rounded.
    """
    rho = functional.cosine_similarity(x, rounded, dim=-1)
    eta = torch.softmax(1 - rho, -1)
    mass = x.abs().sum(-1)
    tiny = torch.finfo(mass.dtype).tiny
    omega = (mass / mass.sum(-1, keepdim=True).clamp_min(tiny)).clamp_min(tiny)
    return eta / omega


@torch.no_grad()
def initial_gains(
    denoiser: nn.Module,
    calls: Sequence[BlockInput],
    layouts: Mapping[str, FrameLayout],
    activation: Callable[[str], ActivationSpec],
) -> dict[str, Tensor]:
    """Start of M, mean over samples.

    Args:
        denoiser: In full precision.
        calls: Its calls.
        layouts: Of the linears that see frames, by qualified name.
        activation: How the input of a linear is rounded.

    Returns:
        ``[frames]`` by qualified name.
    """
    sums: dict[str, Tensor] = {}

    def see(name: str, x: Tensor) -> None:
        rounded = quantize_activation(x.float(), activation(name))
        cut = layouts[name].cut
        gain = initial_gain(cut(x.float()), cut(rounded)).mean(0)
        sums[name] = sums[name] + gain if name in sums else gain

    with observing(denoiser, list(layouts), see):
        for call in calls:
            with_output(denoiser, call)
    return {name: total / len(calls) for name, total in sums.items()}
