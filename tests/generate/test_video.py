from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from harness.errors import HarnessError
from harness.generate import video

if TYPE_CHECKING:
    from pathlib import Path


def clip(frames: int = 9, height: int = 32, width: int = 48) -> np.ndarray:
    """A smooth ramp with a moving square: what a codec is made for."""
    ramp = np.linspace(0, 200, width, dtype=np.uint8)
    made = np.broadcast_to(ramp[None, None, :, None], (frames, height, width, 3)).copy()
    for t in range(frames):
        made[t, 8:20, 2 + 3 * t : 14 + 3 * t] = (220, 40, 60)
    return made


def noise(frames: int = 5, height: int = 31, width: int = 29) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("frames", [clip(), noise(), noise(1)])
def test_a_lossless_clip_comes_back_byte_for_byte(tmp_path: Path, frames: np.ndarray) -> None:
    video.write_lossless(tmp_path / "a.mkv", frames, fps=8)
    assert np.array_equal(video.read(tmp_path / "a.mkv"), frames)


def test_an_mp4_comes_back_close_and_in_its_shape(tmp_path: Path) -> None:
    video.write_mp4(tmp_path / "a.mp4", clip(), fps=8)
    read = video.read(tmp_path / "a.mp4")
    assert read.shape == clip().shape
    assert np.abs(read.astype(int) - clip()).mean() < 5


def test_a_width_that_decord_cannot_read_is_read_all_the_same(tmp_path: Path) -> None:
    decord = pytest.importorskip("decord", reason="has no wheel for this platform")
    path = tmp_path / "a.mp4"
    video.write_mp4(path, clip(width=48), fps=8)
    with pytest.raises(decord.DECORDError):
        video.read_decord(path, decord)
    assert video.read(path).shape == clip(width=48).shape


def test_decord_and_pyav_read_the_same_bytes_from_an_mp4(tmp_path: Path) -> None:
    decord = pytest.importorskip("decord", reason="has no wheel for this platform")
    path = tmp_path / "a.mp4"
    video.write_mp4(path, clip(width=64), fps=8)
    assert np.array_equal(video.read_av(path), video.read_decord(path, decord))


def test_the_same_frames_give_the_same_files(tmp_path: Path) -> None:
    made = {".mp4": set[bytes](), ".mkv": set[bytes]()}
    for _ in range(12):
        for suffix, write in ((".mp4", video.write_mp4), (".mkv", video.write_lossless)):
            write(tmp_path / f"a{suffix}", clip(width=64), fps=8)
            made[suffix].add((tmp_path / f"a{suffix}").read_bytes())
    assert {suffix: len(files) for suffix, files in made.items()} == {".mp4": 1, ".mkv": 1}


def test_an_odd_height_is_refused_for_mp4(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="29x31"):
        video.write_mp4(tmp_path / "a.mp4", noise(), fps=8)


def test_frames_that_are_no_uint8_rgb_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not uint8"):
        video.write_lossless(tmp_path / "a.mkv", clip().astype(np.float32), fps=8)
    with pytest.raises(ValueError, match="not uint8"):
        video.write_lossless(tmp_path / "a.mkv", clip()[:0], fps=8)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_file_that_is_no_video_is_named_in_the_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(b"not a video")
    with pytest.raises(HarnessError, match="broken"):
        video.read(path)
    with pytest.raises(HarnessError, match="there is no clip"):
        video.read(tmp_path / f"absent{suffix}")
