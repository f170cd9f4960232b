"""A clip as the official functions see it: under the official name, decoded once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vbench_worker.decode import Footage, read_footage

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from vbench_worker.decode import Readers
    from vbench_worker.protocol import ClipJob

NAME_BYTES = 255  # limit of one path component on the usual file systems
EXTENSION = ".mp4"


def official_name(prompt: str, index: int) -> str | None:
    """The file name that the official code expects, None where no file can have it."""
    name = f"{prompt}-{index}{EXTENSION}"
    if "/" in name or "\0" in name or len(name.encode()) > NAME_BYTES:
        return None
    return name


@dataclass(kw_only=True)
class Clip:
    """One clip for the time it is judged.

    Attributes:
        link: Leads to the file; its name is the official one where ``named``, for the official code
            reads the class of human_action from it.
        named: Whether the prompt can be a file name.
    """

    id: str
    path: Path
    prompt: str
    index: int
    link: Path
    named: bool
    readers: Readers
    _footage: Footage | None = field(default=None)
    _shape: tuple[int, ...] | None = field(default=None)

    @property
    def footage(self) -> Footage:
        """All frames, decoded at the first call.

        Raises:
            UnscorableError: If the file cannot be decoded.
        """
        if self._footage is None:
            self._footage = read_footage(self.path, self.readers)
        return self._footage

    @property
    def shape(self) -> tuple[int, ...]:
        """Frames, height, width and 3.

        Raises:
            UnscorableError: If the file cannot be decoded.
        """
        if self._shape is None:
            self._shape = self.footage.bgr.shape
        return self._shape

    def forget(self) -> None:
        """Let the frames go; the next who asks has them decoded again."""
        self._footage = None

    @property
    def frames_rgb(self) -> np.ndarray:
        """Read-only bytes of shape [frames, height, width, 3], as decord returns them."""
        return self.footage.rgb

    @property
    def frames_bgr(self) -> np.ndarray:
        """Read-only bytes of shape [frames, height, width, 3], as cv2 returns them."""
        return self.footage.bgr

    @property
    def fps(self) -> float:
        """Frames per second, as cv2 reads it from the container."""
        return self.footage.fps


def open_clip(job: ClipJob, scratch: Path, readers: Readers) -> Clip:
    """Link a clip under its official name; nothing is decoded yet.

    A folder per clip, since prompts may differ only in case.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    if not job.path.is_file():
        raise FileNotFoundError(f"no such clip: {job.path}")
    name = official_name(job.prompt, job.index)
    folder = scratch / job.id
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / (name or f"clip-{job.index}{EXTENSION}")
    link.unlink(missing_ok=True)
    link.symlink_to(job.path)
    return Clip(
        id=job.id,
        path=job.path,
        prompt=job.prompt,
        index=job.index,
        link=link,
        named=name is not None,
        readers=readers,
    )
