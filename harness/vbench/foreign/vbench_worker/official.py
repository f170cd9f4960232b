"""The other scorer: the official ``compute_*`` functions themselves, a dimension at a time.

They load their models and open every file themselves. What they cannot take (a clip with too few
frames, one that does not decode) is kept from them, since one such clip ends the whole call.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vbench_worker import detector
from vbench_worker.compat import private_imports, trusting_load
from vbench_worker.flow import static_filter
from vbench_worker.judges import Score
from vbench_worker.light import IMAGING_SCALE, JUDGES
from vbench_worker.substitute import dimension_module, paths

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from vbench_worker.clips import Clip
    from vbench_worker.judges import Shelf
    from vbench_worker.protocol import Want

EXTRA = ("static_filter", "flow_score")  # not dimensions: nothing computes a list of them

Asked = list[tuple["Clip", "Want"]]


def score_dimension(
    dimension: str, asked: Asked, shelf: Shelf, scratch: Path
) -> tuple[dict[str, Score], float | None]:
    """Score the clips of one dimension.

    Args:
        dimension: Its name.
        asked: Clips, and what is wanted of each.
        shelf: Only for ``EXTRA``, which have no official function for a list.
        scratch: Where the list for the official function is written.

    Returns:
        Score by key, and the official aggregate, None where it has none.
    """
    if dimension in EXTRA:
        return {want.key: _extra(dimension, clip, want, shelf) for clip, want in asked}, None
    if dimension in detector.JUDGES:
        detector.require_detectron()
    info = scratch / f"{dimension}_full_info.json"
    entries = [_entry(dimension, clip, want) for clip, want in asked]
    info.write_text(json.dumps(entries), encoding="utf-8")
    with _surroundings(dimension):
        module = dimension_module(dimension)
        trust = nullcontext() if dimension != "motion_smoothness" else trusting_load(module)
        with trust:
            compute = getattr(module, f"compute_{dimension}")
            aggregate, rows = compute(str(info), shelf.settings.device, paths(dimension))
    found = {row["video_path"]: row for row in rows}
    scores = {want.key: _of_row(dimension, clip, found.get(str(clip.link))) for clip, want in asked}
    return scores, float(aggregate)


def _entry(dimension: str, clip: Clip, want: Want) -> dict[str, Any]:
    """One entry of the official list of prompts and clips."""
    entry: dict[str, Any] = {
        "prompt_en": clip.prompt,
        "dimension": [dimension],
        "video_list": [str(clip.link)],
    }
    if want.auxiliary is not None:
        entry["auxiliary_info"] = {dimension: want.auxiliary}
    return entry


def _surroundings(dimension: str) -> AbstractContextManager[None]:
    if dimension == "motion_smoothness":
        import vbench

        return private_imports(Path(vbench.__file__).parent / "third_party" / "amt")
    if dimension == "subject_consistency":
        return private_imports(Path(paths(dimension)["repo_or_dir"]))
    return nullcontext()


def _of_row(dimension: str, clip: Clip, row: dict[str, Any] | None) -> Score:
    if row is None:  # color leaves out clips in which the object is never seen
        return Score(value=0.0, valid=False, facts={"official": None})
    raw = row["video_results"]
    scale = IMAGING_SCALE if dimension == "imaging_quality" else 1.0
    fact = raw if isinstance(raw, bool) else float(raw)
    return Score(
        value=float(raw) / scale, weight=_weight(dimension, clip, row), facts={"official": fact}
    )


def _weight(dimension: str, clip: Clip, row: dict[str, Any]) -> float:
    """What the official aggregate weighs a clip by: the frames that it counts of it."""
    if dimension == "subject_consistency":
        return clip.shape[0] - 1
    if dimension == "background_consistency":
        return row["cnt_per_video"]
    if dimension in ("appearance_style", "spatial_relationship"):
        return len(row["frame_results"])
    return row.get("frame_count", 1)


def _extra(dimension: str, clip: Clip, want: Want, shelf: Shelf) -> Score:
    if dimension == "static_filter":
        with static_filter(shelf) as static:
            verdict = bool(static.infer(str(clip.link)))
        return Score(value=float(verdict), facts={"official": verdict})
    return JUDGES[dimension].score(clip, want, shelf)
