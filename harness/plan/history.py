"""What earlier work took on this machine, from the journal of the store."""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.store.store import Store

History = dict[str, list[float]]
"""Seconds that published things took, newest last, by ``<kind>:<label>``."""

LAST = 16
"""How many of the newest are looked at."""


def history(store: Store) -> History:
    """Seconds by kind and label; clips also by ``model:<name>``, artifacts by model and label."""
    taken: History = defaultdict(list)
    for row in store.journal():
        if row.get("event") != "published" or "seconds" not in row:
            continue
        seconds, label = float(row["seconds"]), str(row.get("label", "")).partition("/")[0]
        taken[f"{row['kind']}:{label}"].append(seconds)
        if row["kind"] == "clip":
            taken[f"model:{label.partition('--')[0]}"].append(seconds)
        if row["kind"] == "artifact" and "of" in row:
            taken[f"artifact:{row['of']}--{label}"].append(seconds)
    return taken


def recent(taken: History, name: str) -> float | None:
    """Median of the newest; None where there are none."""
    return statistics.median(taken[name][-LAST:]) if taken.get(name) else None
