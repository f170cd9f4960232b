"""Choosing calibration samples from the pool: Hessian-aware salient data selection and its rivals.

S2Q-VDiT (arXiv 2508.04016), sec. 3.2 and table 6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from harness.models.block_input import Sample

if TYPE_CHECKING:
    from harness.models.families.base import Family
    from harness.models.trajectories import CalibrationPool

Selection = Literal["sds", "c_diff", "c_quant", "atop", "atfp", "rtfp"]
"""Rules of table 6, as ``choose_samples`` has them."""
Norm = Literal["fro", "spectral"]
_ORDERS: dict[str, str | int] = {"fro": "fro", "spectral": 2}
_FIVE = 5  # prompts of the atfp and rtfp rows, S2Q-VDiT table 6


class Salience(NamedTuple):
    """Scores of every candidate, float64 ``[prompts, steps]``, min-max normalised over the pool."""

    diffusion: Tensor
    quantization: Tensor

    @property
    def product(self) -> Tensor:
        """C_sample (eq. 8)."""
        return self.diffusion * self.quantization


def diffusion_salience(current: Tensor, following: Tensor) -> float:
    """C_diff(x_t) = ||x_t - x_{t-1}||^2 / ||x_t||^2 (eq. 3); t-1 is the sampler's next step."""
    current, following = current.double(), following.double()
    return float((current - following).square().sum() / current.square().sum())


def quantization_salience(tokens: Tensor, norm: str = "fro") -> float:
    """C_quant(x_t) = ||x_t^T x_t|| (eq. 6), the size of the Hessian that x_t would give a linear.

    Args:
        tokens: ``[tokens, features]``.
        norm: ``fro`` or ``spectral``; the paper writes ||.||_2.
    """
    gram = tokens.double().T @ tokens.double()
    return float(torch.linalg.matrix_norm(gram, ord=_ORDERS[norm]))


def pool_salience(
    pool: CalibrationPool, family: Family, transformer: nn.Module, norm: str = "fro"
) -> Salience:
    """Score every candidate of the pool."""
    diffusion = torch.zeros(len(pool.prompts), pool.steps, dtype=torch.float64)
    quantization = torch.zeros_like(diffusion)
    for sample in pool.samples():
        latent = pool.latent(sample)
        following = pool.latent(Sample(sample.prompt, sample.step + 1))
        diffusion[sample] = diffusion_salience(latent, following)
        quantization[sample] = quantization_salience(family.tokens(transformer, latent), norm)
    return Salience(min_max(diffusion), min_max(quantization))


def min_max(scores: Tensor) -> Tensor:
    """Normalise over the whole pool (eq. 7)."""
    low, high = scores.min(), scores.max()
    return (scores - low) / (high - low).clamp_min(torch.finfo(scores.dtype).tiny)


def choose_samples(
    rule: str, count: int, pool: CalibrationPool, salience: Salience, generator: torch.Generator
) -> list[Sample]:
    """Choose candidates by one of the rules of table 6.

    Args:
        rule: ``sds`` (product of both scores), ``c_diff``, ``c_quant`` (one score), ``atop`` (all
            timesteps of one prompt), ``atfp`` (all timesteps of five prompts, thinned evenly to
            ``count``) or ``rtfp`` (random timesteps of five prompts).
        count: N.
        pool: The candidates.
        salience: Their scores.
        generator: Randomness of ``rtfp``.

    Returns:
        At most ``count`` samples, in pool order.

    Raises:
        ValueError: The rule is unknown.
    """
    if rule in ("sds", "c_diff", "c_quant"):
        scores = {
            "sds": salience.product,
            "c_diff": salience.diffusion,
            "c_quant": salience.quantization,
        }
        order = scores[rule].flatten().argsort(descending=True, stable=True)[:count]
        return sorted(Sample(*divmod(int(i), pool.steps)) for i in order)
    prompts = 1 if rule == "atop" else min(_FIVE, len(pool.prompts))
    candidates = [Sample(p, t) for p in range(prompts) for t in range(pool.steps)]
    count = min(count, len(candidates))
    if rule in ("atop", "atfp"):
        chosen = torch.linspace(0, len(candidates) - 1, count).round().long().unique()
    elif rule == "rtfp":
        chosen = torch.randperm(len(candidates), generator=generator)[:count].sort().values
    else:
        raise ValueError(
            f"unknown selection rule {rule!r}; known: {', '.join(get_args(Selection))}"
        )
    return [candidates[i] for i in chosen.tolist()]
