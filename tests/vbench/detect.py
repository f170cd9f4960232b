"""Judge hand-made detections; a script for the scoring interpreter.

``python detect.py CASES``: a JSON list of ``name``, ``dimension``, ``prompt``, ``auxiliary``,
``clip`` and ``frames``, the detections of each frame as ``[text, box, classes of the frame]``, or
null where the detector fails. Prints ``{name: {"ours": ..., "official": ...}}``: our judge's answer
and the answer of the untouched official function, on the same fake detector.

``vbench.third_party.grit_model`` is a stub here, so that the official modules, which import the
class of the detector from it, import without detectron2.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

from vbench_worker import compat


class Detector:
    """Says frame by frame what it was told to say."""

    def __init__(self, frames: list[Any]) -> None:
        self.frames = iter(frames)

    def run_caption_tensor(self, image: Any) -> tuple[list[Any], None]:
        said = next(self.frames)
        if said is None:
            raise ValueError("the detector is broken")
        return said, None


def ours(case: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """Our judge's answer."""
    import torch
    from vbench_worker import detector
    from vbench_worker.clips import open_clip
    from vbench_worker.decode import Readers
    from vbench_worker.judges import Settings, Shelf
    from vbench_worker.protocol import ClipJob, Want

    settings = Settings(device=torch.device("cpu"), precision="float32", weights=scratch, batch=1)
    model = Detector(case["frames"])
    loaders = dict.fromkeys(detector.LOADERS, lambda _: model)
    want = Want(dimension=case["dimension"], key="k", auxiliary=case["auxiliary"])
    job = ClipJob(id="clip", path=Path(case["clip"]), prompt=case["prompt"], index=0, wants=(want,))
    clip = open_clip(job, scratch, Readers())
    try:
        judge = detector.JUDGES[case["dimension"]]
        score = judge.score(clip, want, Shelf(settings=settings, loaders=loaders))
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {
        "value": score.value,
        "valid": score.valid,
        "weight": score.weight,
        "facts": score.facts,
    }


def official(case: dict[str, Any]) -> dict[str, Any]:
    """The official function's answer."""
    import importlib

    import torch

    function = getattr(importlib.import_module(f"vbench.{case['dimension']}"), case["dimension"])
    listed = [
        {
            "prompt": case["prompt"],
            "video_list": [case["clip"]],
            "auxiliary_info": case["auxiliary"],
        }
    ]
    try:
        aggregate, rows = function(Detector(case["frames"]), listed, torch.device("cpu"))
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"aggregate": aggregate, "value": rows[0]["video_results"]}


def main() -> None:
    """Judge all cases."""
    stub = types.ModuleType("vbench.third_party.grit_model")
    stub.DenseCaptioning = Detector  # type: ignore[attr-defined]
    sys.modules[stub.__name__] = stub
    cases = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(sys.stderr):
        compat.prepare(Path(scratch) / "weights")
        answers = {
            case["name"]: {"ours": ours(case, Path(scratch)), "official": official(case)}
            for case in cases
        }
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
