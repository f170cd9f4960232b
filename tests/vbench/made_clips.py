"""Small clips whose content is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.generate.video import write_lossless, write_mp4

if TYPE_CHECKING:
    from pathlib import Path

FRAMES, SIDE, FPS = 5, 128, 8


def moving(frames: int = FRAMES, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """A random texture that moves by 6 pixels a frame; shape [frames, height, width, 3]."""
    texture = np.random.default_rng(0).integers(0, 256, (height // 4, width // 4 + 1, 3))
    picture = np.kron(texture, np.ones((4, 4, 1))).astype(np.uint8)
    picture = np.pad(picture, ((0, 4), (0, 4), (0, 0)), mode="edge")[:height, :width]
    return np.stack([np.roll(picture, 6 * t, axis=1) for t in range(frames)])


def noise(frames: int = FRAMES) -> np.ndarray:
    """Independent noise."""
    shape = (frames, SIDE, SIDE, 3)
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


def write(path: Path, frames: np.ndarray, fps: int = FPS) -> Path:
    """Write the file that VBench reads."""
    write_mp4(path, frames, fps=fps)
    return path


def write_exact(path: Path, frames: np.ndarray, fps: int = FPS) -> Path:
    """Write a file that gives back the same bytes, of any size, under the name of an MP4."""
    lossless = path.with_suffix(".mkv")
    write_lossless(lossless, frames, fps=fps)
    lossless.rename(path)
    return path


def still(frames: int = FRAMES) -> np.ndarray:
    """One picture, again and again."""
    return np.repeat(moving(1), frames, axis=0)
