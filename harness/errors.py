"""The errors a user sees: two lines, what is wrong and what to do about it."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class HarnessError(Exception):
    """A failure whose cause and remedy are known.

    Args:
        message: What is wrong, one line, lower case, with the offending value in quotes.
        hint: What to do about it, one line.

    Attributes:
        exit_code: What the command line exits with; subclasses override it.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"error: {self.message}\nhint: {self.hint}"


class UsageError(HarnessError):
    """The request cannot be understood; nothing was started."""

    exit_code = 2


class InfraError(HarnessError):
    """The machine failed, not the request: disk full, worker killed, store unreadable."""

    exit_code = 4


class UnsupportedError(HarnessError):
    """A method found, with the model before it, that it cannot make this row; no defect of either.

    What can be known without the model is said by the method's ``supports``.
    """


class DivergedError(HarnessError):
    """Latents or frames are NaN or infinite: what was sampled is no clip.

    Args:
        place: Where it was found, such as ``step 3 of 50``.
        dtype: What was computed in.
        message: What to say of it; None for that values are not finite there.
    """

    def __init__(self, place: str, dtype: str, message: str | None = None) -> None:
        hint = f"the dtype is {dtype}: look at the weights, and at the widths of a quantized row"
        if dtype == "float16":
            hint = 'float16 overflows in many models: try dtype = "bfloat16" in [gen]'
        super().__init__(message or f"the sampler diverged: not finite at {place}", hint)
        self.place = place


class CalibrationForbiddenError(HarnessError):
    """A method that declares itself data-free asked for calibration data."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """Build the error for a name that is not among the known ones, with the nearest match."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    guess = f"did you mean {near[0]}? " if near else ""
    return UsageError(f"{kind} '{name}' is unknown", f"{guess}known: {', '.join(names)}")
