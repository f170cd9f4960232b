"""A column: how one metric is shown."""

from __future__ import annotations

from dataclasses import dataclass

QUALITY, VBENCH, FIDELITY, COST, OTHER = "quality", "VBench", "fidelity to fp", "cost", "other"
BLOCKS = (QUALITY, VBENCH, FIDELITY, COST, OTHER)

MEAN = "mean"  # over prompts, with an interval
DELTA = "delta"  # paired difference to the fp row
CELL = "cell"  # one value for the whole row
LAYERS = "layers"  # three values of the row in one text
SPEEDUP = "speedup"  # fp's step latency over the row's, kernels only


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """How one metric is shown.

    Attributes:
        metric: Name in the records.
        title: Head of the column; a line break splits it where the renderer has several lines.
        block: One of ``BLOCKS``.
        kind: How the entry comes from the records.
        better: ``higher``, ``lower`` or ``none``.
        digits: Decimals; with ``significant``, significant digits.
        significant: Whether ``digits`` counts significant digits.
        scale: Shown value = recorded value x scale.
        suffix: Printed after the number.
        interval: Whether the interval is printed (it is always in the CSV).
        interval_digits: Decimals of the interval's ends where fewer do.
        spread: Metric printed after the value as +-.
        measured: Whether the value means nothing for a simulated row, which then prints
            ``simulated``.
        shown: False for a column that only the CSV has.
    """

    metric: str
    title: str
    block: str
    kind: str = MEAN
    better: str = "none"
    digits: int = 2
    significant: bool = False
    scale: float = 1.0
    suffix: str = ""
    interval: bool = False
    interval_digits: int | None = None
    spread: str = ""
    measured: bool = False
    shown: bool = True

    @property
    def key(self) -> str:
        """Name of the column in the CSV."""
        return f"{self.metric}_minus_fp" if self.kind == DELTA else self.metric

    @property
    def head(self) -> str:
        """Title with the direction that is better."""
        return self.title + {"higher": " ↑", "lower": " ↓"}.get(self.better, "")

    def number(self, value: float, *, end: bool = False) -> str:
        """Write a recorded value as the column shows it.

        Args:
            value: As recorded.
            end: Whether it is an end of the interval.
        """
        digits = self.interval_digits if end and self.interval_digits is not None else self.digits
        shown = value * self.scale
        sign = "+" if self.kind == DELTA and round(shown, digits) > 0 else ""
        if self.significant:
            return f"{sign}{shown:#.{digits}g}".rstrip(".")
        if round(shown, digits) == 0:
            shown = 0.0  # no minus zero
        return f"{sign}{shown:.{digits}f}"
