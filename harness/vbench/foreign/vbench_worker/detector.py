"""The dimensions that detect objects with GRiT, each by its official function on one clip.

GRiT needs detectron2, which no package index has; without it these dimensions are ``unsupported``.
Beside each official value stands a ``strict`` one that cannot grow by what is not in the frames.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vbench_worker.decode import reading
from vbench_worker.judges import Score, UnsupportedError
from vbench_worker.prompts import AuxiliaryError, auxiliary, one_prompt
from vbench_worker.substitute import dimension_module, paths, replaced, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vbench_worker.clips import Clip
    from vbench_worker.judges import Judge, Settings, Shelf
    from vbench_worker.protocol import Want

OBJECTS = "grit-objects"
CAPTIONS = "grit-captions"

NO_DETECTRON = "needs detectron2, which is not installed (see docs/vbench.md)"

SIDES = {
    "on the left of": (0, -1),
    "on the right of": (0, 1),
    "on the top of": (1, -1),
    "on the bottom of": (1, 1),
}
"""Axis (0 across, 1 down) and sign of the way from the second object's centre to the first's."""

Detection = tuple[str, "Sequence[int]", "Sequence[str]"]
"""What GRiT says of one box: caption or class, [x0, y0, x1, y1] in pixels, classes of the frame."""


@dataclass(kw_only=True)
class Watched:
    """A detector that remembers what it said and how it failed.

    The official object_class takes every exception of the detector for a frame without objects, so
    that a detector that always fails scores 0 like a bad clip.
    """

    model: Any
    frames: list[list[Detection]] = field(default_factory=list)
    error: Exception | None = None

    def run_caption_tensor(self, image: Any) -> Any:
        """Detect objects in an image of shape [height, width, 3]."""
        try:
            answer = self.model.run_caption_tensor(image)
        except Exception as error:
            self.error = error
            raise
        self.frames.append(list(answer[0]))
        return answer

    def raise_again(self) -> None:
        """Raise what the official function took for an empty frame.

        Raises:
            Exception: Whatever the detector raised.
        """
        if self.error is not None:
            raise self.error


@dataclass(frozen=True, kw_only=True, slots=True)
class Objects:
    """object_class and multiple_objects: share of 16 frames with all objects of the prompt.

    A frame without a detection counts against the clip, so the strict value is the official one.
    """

    name: str
    count: int
    models: tuple[str, ...] = (OBJECTS,)

    def score(self, clip: Clip, want: Want, shelf: Shelf) -> Score:
        """Judge one clip.

        Raises:
            AuxiliaryError: If the job does not name the objects.
        """
        entry = auxiliary(want, "object")
        if len(entry["object"].split(" and ")) != self.count:
            raise AuxiliaryError(f"{self.name} cannot look for '{entry['object']}'")
        row, _ = _judge(self.name, clip, entry, Watched(model=shelf.get(OBJECTS)), shelf)
        value, frames = row["video_results"], row["frame_count"]
        facts = {"official": value, "strict": value, "frames": frames}
        return Score(value=value, weight=frames, facts=facts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Color:
    """Of the frames where the object has a colour, the share where it has the prompt's.

    The official code leaves out a clip in which the object never shows, and divides by the frames
    in which it does: one good frame among 16 empty ones makes a perfect clip. The strict value
    divides by all frames, and is 0 for a clip that is left out.
    """

    name: str = "color"
    models: tuple[str, ...] = (CAPTIONS,)

    def score(self, clip: Clip, want: Want, shelf: Shelf) -> Score:
        """Judge one clip.

        Raises:
            AuxiliaryError: If the job does not name the colour.
        """
        entry = auxiliary(want, "color")
        watched = Watched(model=shelf.get(CAPTIONS))
        from vbench import color as official

        counts: list[tuple[int, int]] = []

        def counting(*args: Any) -> tuple[int, int]:
            counts.append(check(*args))
            return counts[-1]

        check = official.check_generate
        row: dict[str, Any] | None
        with replaced(official, check_generate=counting):
            try:
                row, _ = _judge(self.name, clip, entry, watched, shelf)
            except ZeroDivisionError:
                # The official mean over no clip: this one, the only one of the list, was dropped.
                if not counts or counts[0][0]:
                    raise
                row = None
        seen, right = counts[0]
        frames = len(watched.frames)
        value = None if row is None else row["video_results"]
        facts = {"official": value, "strict": right / frames, "frames": frames, "seen": seen}
        return Score(value=value or 0.0, valid=value is not None, facts=facts)


@dataclass(frozen=True, kw_only=True, slots=True)
class SpatialRelationship:
    """Mean over 16 frames of how well two objects lie in the prompt's relation.

    The official code takes any two boxes of either class, so two bicycles pass for a bicycle and a
    car, and looks at the axis but not at the direction, so left passes for right. The strict value
    asks for one box of each class and for the right side; it is never above the official one.
    """

    name: str = "spatial_relationship"
    models: tuple[str, ...] = (OBJECTS,)

    def score(self, clip: Clip, want: Want, shelf: Shelf) -> Score:
        """Judge one clip.

        Raises:
            AuxiliaryError: If the job does not name the objects and their relation.
        """
        entry = auxiliary(want, "spatial_relationship")
        wanted = entry["spatial_relationship"]
        if missing := {"object_a", "object_b", "relationship"} - wanted.keys():
            raise AuxiliaryError(f"spatial_relationship lacks {', '.join(sorted(missing))}")
        watched = Watched(model=shelf.get(OBJECTS))
        row, official = _judge(self.name, clip, entry, watched, shelf)
        value, frames = float(row["video_results"]), len(row["frame_results"])
        strict = [_strict(frame, wanted, official.get_position_score) for frame in watched.frames]
        facts = {"official": value, "strict": float(sum(strict) / frames), "frames": frames}
        return Score(value=value, weight=frames, facts=facts)


def _strict(frame: list[Detection], wanted: dict[str, str], score: Callable[..., float]) -> float:
    """The best official score of a box of each class, the first on its side of the second."""
    relation = wanted["relationship"]
    if relation not in SIDES:
        return 0.0
    axis, sign = SIDES[relation]
    first = [box for name, box, _ in frame if name == wanted["object_a"]]
    second = [box for name, box, _ in frame if name == wanted["object_b"]]
    scores = [
        score(relation, a, b)
        for a in first
        for b in second
        if sign * (a[axis] + a[axis + 2] - b[axis] - b[axis + 2]) > 0
    ]
    return float(max(scores, default=0.0))


def _judge(
    name: str, clip: Clip, entry: dict[str, Any], watched: Watched, shelf: Shelf
) -> tuple[dict[str, Any], Any]:
    """The official row of one clip, and the official module."""
    official = dimension_module(name)
    with reading(clip), replaced(official, tqdm=silent):
        _, (row,) = getattr(official, name)(watched, one_prompt(clip, entry), shelf.settings.device)
    watched.raise_again()
    return row, official


def require_detectron() -> None:
    """Say what is missing before the import of an official module says it in other words.

    Raises:
        UnsupportedError: If detectron2 is not installed.
    """
    if importlib.util.find_spec("detectron2") is None:
        raise UnsupportedError(NO_DETECTRON)


def _grit(settings: Settings, dimension: str, start: str) -> Any:
    require_detectron()
    from vbench.third_party.grit_model import DenseCaptioning

    model = DenseCaptioning(settings.device)
    getattr(model, start)(**paths(dimension))
    return model


def load_objects(settings: Settings) -> Any:
    """GRiT that names the class of each object, as three dimensions load it.

    Raises:
        UnsupportedError: If detectron2 is not installed.
    """
    return _grit(settings, "object_class", "initialize_model_det")


def load_captions(settings: Settings) -> Any:
    """GRiT that describes each object, as color loads it.

    Raises:
        UnsupportedError: If detectron2 is not installed.
    """
    return _grit(settings, "color", "initialize_model")


JUDGES: dict[str, Judge] = {
    judge.name: judge
    for judge in (
        Objects(name="object_class", count=1),
        Objects(name="multiple_objects", count=2),
        Color(),
        SpatialRelationship(),
    )
}

LOADERS: dict[str, Callable[[Settings], Any]] = {OBJECTS: load_objects, CAPTIONS: load_captions}
