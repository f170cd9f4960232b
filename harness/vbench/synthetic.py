"""Synthetic clips and what is asked of them, for comparing two ways to score."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np

FPS, FRAMES = 8, 16
SIZES = ((128, 128), (128, 128), (128, 128), (192, 256))
"""Height and width of the clips, in turn."""


def ask(
    folder: Path, dimensions: Sequence[str], clips: int, full_info: Path
) -> list[dict[str, Any]]:
    """Write the clips; returns them as the worker wants them.

    A clip has the name of a human_action prompt, since that dimension reads it, and for each
    dimension the auxiliary entry of a prompt of that dimension.
    """
    from harness.generate.video import write_mp4

    entries = json.loads(full_info.read_text(encoding="utf-8"))
    listed = {d: [e for e in entries if d in e["dimension"]] for d in ("human_action", *dimensions)}
    jobs = []
    for i in range(clips):
        path = folder / f"{i}.mp4"
        write_mp4(path, synthetic_clip(i), fps=FPS)
        wants = []
        for name in dimensions:
            entry = listed[name][i % len(listed[name])]
            auxiliary = entry.get("auxiliary_info", {}).get(name)
            wants.append({"dimension": name, "key": f"{name}/{i}", "auxiliary": auxiliary})
        prompt = listed["human_action"][i % len(listed["human_action"])]["prompt_en"]
        clip = {"id": f"clip-{i}", "path": str(path), "prompt": prompt, "index": 0}
        jobs.append({**clip, "wants": wants})
    return jobs


def synthetic_clip(seed: int) -> np.ndarray:
    """A pattern that moves under noise: ``uint8 [frames, height, width, 3]``."""
    import numpy as np

    rng = np.random.default_rng(seed)
    height, width = SIZES[seed % len(SIZES)]
    down, across = np.mgrid[0:height, 0:width]
    periods, steps = rng.uniform(6, 40, 3), rng.uniform(-5, 5, (3, 2))
    frames = []
    for t in range(FRAMES):
        waves = [
            np.sin((across + t * x) / p) * np.cos((down + t * y) / p)
            for p, (x, y) in zip(periods, steps, strict=True)
        ]
        noise = rng.normal(0, 10, (height, width, 3))
        frames.append(128 + 100 * np.stack(waves, axis=-1) + noise)
    clip: np.ndarray = np.clip(np.stack(frames), 0, 255).astype(np.uint8)
    return clip
