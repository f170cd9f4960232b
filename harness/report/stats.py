"""Paired statistics: the unit is the prompt, seeds are averaged first.

Every number a table or a comparison calls a difference comes from here. Owns no knowledge of
metrics or files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CONFIDENCE = 0.95
RESAMPLES = 4_999
ALPHA = 1.0 - CONFIDENCE
POWER = 0.8


@dataclass(frozen=True, kw_only=True, slots=True)
class MeanInterval:
    """A mean with its interval.

    Attributes:
        n: Prompts it rests on.
        mean: Mean over prompts.
        low: Lower end of the 95 % interval, None where one prompt gives none.
        high: Upper end.
    """

    n: int
    mean: float
    low: float | None = None
    high: float | None = None

    @property
    def excludes_zero(self) -> bool:
        """Whether there is an interval and zero lies outside it."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def paired(first: Mapping[str, float], second: Mapping[str, float]) -> list[float]:
    """``first - second`` on the prompts that both have, in the order of ``first``."""
    return [value - second[prompt] for prompt, value in first.items() if prompt in second]


def estimate(
    values: Sequence[float], *, resamples: int | None = None, seed: int = 0
) -> MeanInterval | None:
    """Mean over prompts with a bootstrap interval.

    The interval is the bias-corrected accelerated one (Efron 1987, as in
    ``scipy.stats.bootstrap``). One prompt has no interval; prompts that all agree have an interval
    of width zero.

    Args:
        values: One value, or one paired difference, for each prompt.
        resamples: Bootstrap resamples, ``RESAMPLES`` where left out.
        seed: Seed of the resampling, so that a table printed twice is the same table.

    Returns:
        None where there is no value at all.
    """
    from scipy import stats

    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0:
        return None
    mean = float(sample.mean())
    if sample.size == 1:
        return MeanInterval(n=1, mean=mean)
    if _constant(sample):
        return MeanInterval(n=sample.size, mean=mean, low=mean, high=mean)
    found = stats.bootstrap(
        (sample,),
        np.mean,
        n_resamples=RESAMPLES if resamples is None else resamples,
        confidence_level=CONFIDENCE,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return MeanInterval(n=sample.size, mean=mean, low=float(found.low), high=float(found.high))


def sign_flip_p(
    differences: Sequence[float], *, resamples: int | None = None, seed: int = 0
) -> float | None:
    """Two-sided permutation p of the mean paired difference under random sign flips.

    Exact while 2^n does not exceed ``resamples``, otherwise sampled with the observed value counted
    in.

    Returns:
        None without any difference; 1.0 where all are zero.
    """
    from scipy import stats

    sample = np.asarray(differences, dtype=np.float64)
    if sample.size == 0:
        return None
    if sample.size == 1 or not sample.any():
        return 1.0
    found = stats.permutation_test(
        (sample,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES if resamples is None else resamples,
        alternative="two-sided",
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def holm(pvalues: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Holm 1979), in the order given."""
    order = sorted(range(len(pvalues)), key=lambda i: pvalues[i])
    adjusted = [0.0] * len(pvalues)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, (len(pvalues) - rank) * pvalues[index])
        adjusted[index] = min(1.0, running)
    return adjusted


def detectable(differences: Sequence[float], *, power: float = POWER) -> float | None:
    """Smallest true mean difference that a paired t test of this many prompts finds.

    ``(t[1 - alpha/2] + t[power]) * sd / sqrt(n)`` with n - 1 degrees of freedom and the standard
    deviation of the differences given: two-sided, alpha 0.05, one comparison.

    Args:
        differences: Paired differences by prompt, whose spread is taken for the truth.
        power: Chance of finding it.

    Returns:
        None where there is no spread to go by: fewer than two prompts, or all differences alike.
    """
    from scipy import stats

    sample = np.asarray(differences, dtype=np.float64)
    if sample.size < 2 or _constant(sample):
        return None
    quantiles = stats.t.ppf([1 - ALPHA / 2, power], sample.size - 1)
    return float(quantiles.sum() * sample.std(ddof=1) / np.sqrt(sample.size))


@dataclass(frozen=True, kw_only=True, slots=True)
class Test:
    """A paired difference with its interval and p.

    Attributes:
        difference: Mean difference with interval.
        p: Permutation p, unadjusted.
        p_holm: The same after Holm over the family it was tested in.
    """

    __test__ = False  # not a test case, whatever pytest thinks of the name

    difference: MeanInterval
    p: float
    p_holm: float

    @property
    def separated(self) -> bool:
        """Whether the interval excludes zero and the adjusted p is below 5 %."""
        return self.difference.excludes_zero and self.p_holm < ALPHA


def holm_family(differences: Sequence[Sequence[float]], *, seed: int = 0) -> list[Test | None]:
    """Test several paired differences as one family.

    Args:
        differences: For each comparison its differences by prompt; an empty one gives None and does
            not count towards the family.
        seed: Seed of both resamplings.
    """
    found = [(estimate(d, seed=seed), sign_flip_p(d, seed=seed)) for d in differences]
    adjusted = iter(holm([p for _, p in found if p is not None]))
    return [
        None if mean is None or p is None else Test(difference=mean, p=p, p_holm=next(adjusted))
        for mean, p in found
    ]


def _constant(sample: np.ndarray) -> bool:
    """Whether the values agree to rounding; the bootstrap of such a sample is undefined."""
    return bool(np.ptp(sample) <= 1e-12 * max(1.0, float(np.abs(sample).max())))
