"""The metrics one asks for by name: installed scorers, VBench's dimensions, one's own from a file.

What is always there (fidelity to the reference, the bundled model's oracle) need not be asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.errors import UsageError, unknown_name
from harness.score.registry import scorer_names
from harness.vbench.dimensions import DIMENSIONS, EIGHT, FLOW, STATIC

if TYPE_CHECKING:
    from collections.abc import Sequence

NONE = "none"
SETS = {"vbench-8": EIGHT, "vbench-16": tuple(DIMENSIONS)}
JUDGED = (*DIMENSIONS, STATIC, FLOW)
"""What the scoring environment's worker answers for."""


def expand(names: Sequence[str]) -> tuple[str, ...]:
    """The metrics that names stand for, each once, in order; empty for ``none``.

    Raises:
        UsageError: A name is unknown, or ``none`` stands beside others.
    """
    known = (*SETS, *JUDGED, *scorer_names(), NONE)
    for name in names:
        if name not in known and ":" not in name:
            error = unknown_name("metric", name, known)
            raise UsageError(error.message, f"{error.hint}; or module:attribute of one's own")
    if NONE in names and set(names) != {NONE}:
        raise UsageError("metric 'none' stands beside others", "give it alone, or leave it out")
    found = [m for name in names for m in SETS.get(name, (name,)) if m != NONE]
    return tuple(dict.fromkeys(found))
