"""Runs in the scoring interpreter: the official functions over several clips with made-up models.

Every judge of a clip is replaced by a function of made-up numbers, every loop and every average is
the official one. Prints, per dimension, the official aggregate and what a worker would report of
each clip: its value and its weight.
"""

from __future__ import annotations

import importlib
import json
import sys
import types
from pathlib import Path
from typing import Any

from vbench_worker import compat

compat.prepare(Path(sys.argv[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402

FRAMES = {"/v/a-0.mp4": 3, "/v/a-1.mp4": 7, "/v/b-0.mp4": 4}
CPU = torch.device("cpu")


def frames_of(path: str, **options: Any) -> Any:
    """Made-up frames: float [T, 3, 32, 32] or bytes [T, 32, 32, 3]; a clip is known by its name."""
    draw = np.random.default_rng(sorted(FRAMES).index(path))
    frames = draw.integers(0, 255, (FRAMES[path], 32, 32, 3), dtype=np.uint8)
    if options.get("return_tensor", True):
        return torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    return frames


def entries(auxiliary: Any = None) -> list[dict[str, Any]]:
    """Two prompts, the first with two clips, as ``load_dimension_info`` gives them."""
    lists = [["/v/a-0.mp4", "/v/a-1.mp4"], ["/v/b-0.mp4"]]
    return [{"prompt": "a red kettle", "video_list": v, "auxiliary_info": auxiliary} for v in lists]


def module(name: str, **names: Any) -> Any:
    """An official module with some of its names replaced, for good: this process ends soon."""
    found = importlib.import_module(f"vbench.{name}")
    for key, value in names.items():
        setattr(found, key, value)
    return found


def pooled(images: Any) -> Any:
    """Features that differ from frame to frame."""
    return torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)


def stub(name: str, attribute: str) -> None:
    """Stands for a detector or captioner that cannot be imported without its libraries."""
    made = types.ModuleType(name)
    setattr(made, attribute, None)
    sys.modules[name] = made


class Judge:
    """Each model that the official loops ask for, in one."""

    def __call__(self, images: Any, text: Any = None) -> Any:
        if text is not None:
            value = 100 * images.mean().reshape(1, 1)
            return value, value
        return pooled(images) if images.shape[-1] == 224 else images.mean()

    def encode_image(self, images: Any) -> Any:
        return pooled(images)

    def motion_score(self, path: str) -> float:
        return 0.9 / FRAMES[path]

    def infer(self, path: str) -> bool:
        return FRAMES[path] > 3


def pairs(path: str) -> float:
    return FRAMES[path] - 1.0


def frames(path: str) -> float:
    return float(FRAMES[path])


def once(_: str) -> float:
    return 1.0


def detections(seen: str, unseen: str) -> Any:
    """Per frame ``seen`` in the first two, then ``unseen``."""

    def detect(_: Any, images: Any) -> list[Any]:
        return [seen if i < 2 else unseen for i in range(len(images))]

    return detect


def boxes(_: Any, images: Any) -> list[Any]:
    near, far = ["kettle", [0, 0, 9, 9]], ["spoon", [20, 0, 29, 9]]
    return [[near, far] if i < 2 else [near] for i in range(len(images))]


def colors(_: Any, images: Any) -> list[Any]:
    """The kettle is red in the first frame, then blue; it is not seen in the clip of four."""
    if len(images) == 4:
        return [[["", ""]]] * 4
    return [[["red kettle" if i < 1 else "blue kettle", "kettle"]] for i in range(len(images))]


def run(name: str, judge: Judge, videos: list[str]) -> tuple[tuple[float, list[Any]], Any]:
    """The official aggregate with its per-clip results, and the weight of a clip."""
    read = {"load_video": frames_of}
    if name in ("subject_consistency", "background_consistency"):
        official = module(name, **read)
        first = [judge] if name == "subject_consistency" else [judge, None]
        return getattr(official, name)(*first, videos, CPU, False), pairs
    if name == "temporal_flickering":
        return module(name, cal_score=judge.motion_score).temporal_flickering(videos), once
    if name == "motion_smoothness":
        return module(name).motion_smoothness(judge, videos), once
    if name == "dynamic_degree":
        return module(name).dynamic_degree(judge, videos), once
    if name == "imaging_quality":
        return module(name, **read).technical_quality(judge, videos, CPU), once
    if name == "appearance_style":
        return module(name, **read).appearance_style(
            judge, entries({"appearance_style": "woodcut"}), CPU
        ), frames
    if name == "scene":
        caption = {"get_caption": detections("a quarry", "a lake")}
        official = module(name, tag2text_transform=lambda _: torch.from_numpy, **read, **caption)
        return official.scene(None, entries({"scene": {"scene": "quarry"}}), CPU), frames
    objects = {"object": "kettle and spoon" if name == "multiple_objects" else "kettle"}
    relation = {"object_a": "kettle", "object_b": "spoon", "relationship": "on the left of"}
    detect, auxiliary, weight = {
        "object_class": (detections("kettle spoon", "lid"), objects, frames),
        "multiple_objects": (detections("kettle spoon", "lid"), objects, frames),
        "spatial_relationship": (boxes, {"spatial_relationship": relation}, frames),
        "color": (colors, {"color": "red"}, once),
    }[name]
    official = module(name, get_dect_from_grit=detect, **read)
    return getattr(official, name)(None, entries(auxiliary), CPU), weight


def main() -> None:
    stub("vbench.third_party.grit_model", "DenseCaptioning")
    stub("vbench.third_party.tag2Text.tag2text", "tag2text_caption")
    found = {}
    for name in sys.argv[2:]:
        (value, rows), weight = run(name, Judge(), list(FRAMES))
        scale = 100.0 if name == "imaging_quality" else 1.0
        found[name] = {
            "official": float(value),
            "clips": {
                row["video_path"]: [float(row["video_results"]) / scale, weight(row["video_path"])]
                for row in rows
            },
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
