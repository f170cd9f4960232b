"""The Frechet distance of a row from the reference, from the stored features of their clips."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.score.names import FVD
from harness.score.scorers import FEATURES, SCORERS, find_score
from harness.spec import Status

if TYPE_CHECKING:
    from harness.plan.cells import PlannedCell
    from harness.store.store import Store
    from harness.task import ClipTask


def fvd_to_reference(planned: PlannedCell, store: Store) -> dict[str, Any]:
    """Value, or status and reason, of the row's distance."""
    from harness.score.fvd import distance

    clips = planned.task.clips
    own = [_features(store, wanted, wanted.clip.key) for wanted in clips]
    reference = [_features(store, wanted, wanted.reference) for wanted in clips]
    pairs = [(a, b) for a, b in zip(own, reference, strict=True) if a and b]
    if len(pairs) < len(clips):
        why = f"{len(pairs)} of {len(clips)} clips have features"
        return {"value": None, "status": Status.SKIPPED, "detail": why}
    try:
        return {"value": distance([a for a, _ in pairs], [b for _, b in pairs])}
    except HarnessError as cause:
        return {"value": None, "status": Status.ERROR, "detail": cause.message}


def _features(store: Store, wanted: ClipTask, key: str) -> list[float]:
    """Features of a clip; empty where it has none."""
    clip = store.find("clip", key) if key else None
    found = find_score(store, SCORERS[FVD], wanted.prompt, clip, None) if clip else None
    return list(found["values"].get(FEATURES, ())) if found else []
