"""Refusing an option's value before any work starts; for ``Options.__post_init__`` of a method."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from harness.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Iterable


def check_choice(option: str, value: str, known: Iterable[str]) -> None:
    """Refuse a word that is none of the known ones.

    Raises:
        UsageError: Naming the option, the value and the nearest known word.
    """
    known = tuple(known)
    if value not in known:
        raise unknown_name(f"option '{option}': value", value, known)


def check_range(option: str, value: float, low: float, high: float = math.inf) -> None:
    """Refuse a number outside ``[low, high]``, NaN included.

    Raises:
        UsageError: Naming the option, the value and the range.
    """
    if not low <= value <= high or math.isinf(value):
        bounds = f"at least {low:g}" if math.isinf(high) else f"from {low:g} to {high:g}"
        raise UsageError(f"option '{option}': value {value} is out of range", f"give {bounds}")
