"""How long Q-VDiT (arXiv 2505.22167) trains, and at what rates where it trains for less."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.api import Work

if TYPE_CHECKING:
    from harness.api import BitSpec

PAPER_BATCH = 4  # Q-VDiT, implementation details
BY_PAPER = -1
"""Value of ``iterations`` that takes the paper's number for the width."""


def paper_iterations(w_bits: int) -> int:
    """Training iterations of the paper by weight width (Q-VDiT, implementation details)."""
    if w_bits <= 3:
        return 15_000
    return 10_000 if w_bits <= 4 else 5_000


def training_iterations(asked: int, w_bits: int) -> int:
    """Iterations that are run, of those asked for by the option."""
    return paper_iterations(w_bits) if asked == BY_PAPER else asked


def rate_factor(iterations: int, w_bits: int, *, stretch: bool) -> float:
    """Factor on both learning rates."""
    paper = paper_iterations(w_bits)
    return paper / iterations if stretch and 0 < iterations < paper else 1.0


def short_note(iterations: int, batch: int, w_bits: int, factor: float) -> tuple[str, ...]:
    """Note for the report where fewer samples were trained on than in the paper."""
    paper = paper_iterations(w_bits)
    if iterations * batch >= paper * PAPER_BATCH:
        return ()
    rates = f" at {factor:g} x its rates" if factor != 1 else ""
    return (
        f"trained for {iterations} iterations of {batch}{rates}, {paper} of {PAPER_BATCH} in the "
        "paper",
    )


def training_work(options: Any, bits: BitSpec) -> Work:
    """Outputs and token gains of the whole denoiser, then training through it.

    Args:
        options: ``QVDiTOptions``.
        bits: Widths of the row.
    """
    steps = 0 if bits.is_identity else training_iterations(options.iterations, bits.w)
    gains = options.estimator and options.gain and not bits.is_identity
    return Work(
        samples=options.samples,
        denoiser_passes=(1 + gains) * options.samples,
        denoiser_steps=steps * options.batch,
    )
