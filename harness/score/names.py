"""The metrics one asks for by name: VBench's dimensions and what papers print beside them.

Fidelity to the reference and the bundled model's oracle are always there and have no name here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.errors import UsageError, unknown_name
from harness.vbench.dimensions import DIMENSIONS, EIGHT, FLOW, STATIC

if TYPE_CHECKING:
    from collections.abc import Sequence

CLIP, FVD = "clip", "fvd"
NONE = "none"
SETS = {"vbench-8": EIGHT, "vbench-16": tuple(DIMENSIONS)}
JUDGED = (*DIMENSIONS, STATIC, FLOW)
"""What the scoring environment's worker answers for."""


def expand(names: Sequence[str]) -> tuple[str, ...]:
    """The metrics that names stand for, each once, in order; empty for ``none``.

    Raises:
        UsageError: A name is unknown, or ``none`` stands beside others.
    """
    known = (*SETS, *JUDGED, CLIP, FVD, NONE)
    for name in names:
        if name not in known:
            raise unknown_name("metric", name, known)
    if NONE in names and set(names) != {NONE}:
        raise UsageError("metric 'none' stands beside others", "give it alone, or leave it out")
    found = [m for name in names for m in SETS.get(name, (name,)) if m != NONE]
    return tuple(dict.fromkeys(found))
