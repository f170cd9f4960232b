"""Decode a clip once for all dimensions.

The official functions open every file again for every dimension, through cv2 or decord. Here the
file is decoded once, and for the time of a judgement ``reading`` puts the decoded frames where the
official functions look for ``cv2.VideoCapture`` and decord's ``VideoReader``; everything that they
do with the frames stays theirs.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import cv2
import decord
import numpy as np

from vbench_worker.judges import UnscorableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from vbench_worker.clips import Clip


@dataclass(kw_only=True)
class Readers:
    """Which reader is used for which kind of file, and how often.

    The two libraries bring an FFmpeg each. Where they return the same bytes for the first file of
    a kind (codec and size), one of them is enough; else each dimension gets the frames of the
    reader that the official code uses for it.

    Attributes:
        decodes: Files decoded to the end for scoring.
        checks: Files decoded a second time to compare the readers.
        scaled: Files opened again since the dimension asks decord to scale while it decodes.
        refused: Files that decord decodes but cannot hand out; cv2's frames stand for them.
        same: Kind of file -> whether cv2 and decord agree on it.
    """

    decodes: int = 0
    checks: int = 0
    scaled: int = 0
    refused: int = 0
    same: dict[tuple[int, int, int], bool] = field(default_factory=dict)

    def counts(self) -> dict[str, Any]:
        """Facts for the event ``counts``."""
        return {
            "decodes": self.decodes,
            "reader_checks": self.checks,
            "scaled_decodes": self.scaled,
            "refused_by_decord": self.refused,
            "readers_agree": all(self.same.values()),
        }


@dataclass(kw_only=True)
class Footage:
    """A decoded clip; its bytes cannot be written to, since all dimensions share them.

    Attributes:
        bgr: Shape [frames, height, width, 3], as cv2 returns them.
        fps: Frames per second, as cv2 reads it from the container.
        kind: Codec, height and width.
    """

    path: Path
    readers: Readers
    bgr: np.ndarray
    fps: float
    kind: tuple[int, int, int]
    _rgb: np.ndarray | None = None

    @property
    def rgb(self) -> np.ndarray:
        """The frames as decord returns them, shape [frames, height, width, 3].

        Raises:
            UnscorableError: If decord has to read them and cannot.
        """
        if self._rgb is None:
            if self._agreed():
                rgb = np.stack([cv2.cvtColor(frame, cv2.COLOR_BGR2RGB) for frame in self.bgr])
            else:
                rgb = _frames_of_decord(self.path)
                self.readers.decodes += 1
            rgb.flags.writeable = False
            self._rgb = rgb
        return self._rgb

    def _agreed(self) -> bool:
        readers = self.readers
        if self.kind not in readers.same:
            readers.checks += 1
            theirs = _read_decord(self.path)
            agree = theirs is None or np.array_equal(theirs, self.bgr[..., ::-1])
            readers.same[self.kind] = agree
            readers.refused += theirs is None
        return readers.same[self.kind]


def read_footage(path: Path, readers: Readers) -> Footage:
    """Decode a file.

    Raises:
        UnscorableError: If it cannot be decoded.
    """
    bgr, fps, kind = _read_cv2(path)
    readers.decodes += 1
    bgr.flags.writeable = False
    return Footage(path=path, readers=readers, bgr=bgr, fps=fps, kind=kind)


def _read_cv2(path: Path) -> tuple[np.ndarray, float, tuple[int, int, int]]:
    video = cv2.VideoCapture(str(path))
    try:
        fps = float(video.get(cv2.CAP_PROP_FPS))
        codec = int(video.get(cv2.CAP_PROP_FOURCC))
        frames = []
        while video.isOpened():
            success, frame = video.read()
            if not success:
                break
            frames.append(frame)
    finally:
        video.release()
    if not frames:
        raise UnscorableError("cannot be decoded: cv2 reads no frame")
    height, width = frames[0].shape[:2]
    return np.stack(frames), fps, (codec, height, width)


def _read_decord(path: Path) -> np.ndarray | None:
    """What decord reads, None where it decodes the file and cannot hand out its frames.

    It aligns the rows of some widths and then finds its own array too small for them.
    """
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        with decord.bridge._BridgeScope("native"):
            return np.array(reader.get_batch(range(len(reader))).asnumpy())
    except decord.DECORDError as error:
        if "size must exactly match" in str(error):
            return None
        raise UnscorableError(
            f"cannot be decoded: decord says {str(error).strip().splitlines()[-1]}"
        ) from error


def _frames_of_decord(path: Path) -> np.ndarray:
    frames = _read_decord(path)
    if frames is None:
        raise UnscorableError("cannot be decoded: decord cannot hand out frames of this width")
    return frames


class _Capture:
    """Stands for ``cv2.VideoCapture`` on a decoded clip."""

    def __init__(self, footage: Footage) -> None:
        self._footage = footage
        self._next = 0

    def get(self, what: int) -> float:
        if what != cv2.CAP_PROP_FPS:
            raise NotImplementedError(f"the official code asks for property {what} of a video")
        return self._footage.fps

    def isOpened(self) -> bool:
        return True

    def read(self) -> tuple[bool, np.ndarray | None]:
        if self._next == len(self._footage.bgr):
            return False, None
        self._next += 1
        return True, self._footage.bgr[self._next - 1]

    def release(self) -> None:
        pass


class _Reader:
    """Stands for decord's ``VideoReader`` on a decoded clip."""

    def __init__(self, footage: Footage) -> None:
        self._footage = footage

    def __len__(self) -> int:
        return len(self._footage.rgb)

    def get_avg_fps(self) -> float:
        return self._footage.fps

    def get_batch(self, indices: Sequence[int]) -> Any:
        # decord's own array through decord's own bridge: native or torch, as the caller has set it.
        return decord.bridge.bridge_out(decord.nd.array(self._footage.rgb[list(indices)]))


@contextmanager
def reading(clip: Clip) -> Iterator[None]:
    """Let the official functions read this clip's decoded frames when they open ``clip.link``.

    What opens another file, or asks decord to scale while it decodes, gets the real reader.
    """
    import vbench.utils as official

    capture, reader, link = cv2.VideoCapture, official.VideoReader, str(clip.link)

    def open_capture(path: str, *rest: Any) -> Any:
        return _Capture(clip.footage) if path == link and not rest else capture(path, *rest)

    def open_reader(path: str, **how: Any) -> Any:
        if path == link and how.keys() <= {"num_threads"}:
            return _Reader(clip.footage)
        clip.readers.scaled += 1
        return reader(path, **how)

    cv2.VideoCapture, official.VideoReader = open_capture, open_reader
    try:
        yield
    finally:
        cv2.VideoCapture, official.VideoReader = capture, reader
