"""Reading and writing clips: H.264 for people and for VBench, FFV1 for the paired metrics.

Frames are ``uint8 [frames, height, width, 3]`` in RGB everywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import av
import numpy as np

from harness.errors import HarnessError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MP4_CODEC = "libx264"
# With its lookahead, x264 (core 165, AVX-512) coded the same frames to other bytes in one of four
# calls; without it 200 of 200 were equal. VBench reads these files, so they must repeat.
MP4_OPTIONS = {
    "crf": "12",
    "preset": "medium",
    "threads": "1",
    "x264-params": "mbtree=0:rc-lookahead=0",
}
MP4_PIXELS = "yuv420p"
LOSSLESS_CODEC = "ffv1"
LOSSLESS_OPTIONS = {"level": "3", "slicecrc": "1", "threads": "1"}
# FFV1 codes RGB only as gbrp or bgr0; both hold the bytes of rgb24 exactly.
LOSSLESS_PIXELS = "bgr0"


def write_mp4(path: Path, frames: np.ndarray, *, fps: int) -> None:
    """Write H.264, CRF 12, yuv420p: the file that people watch and that VBench reads.

    Raises:
        HarnessError: The frames cannot be coded (yuv420p needs an even height and width).
    """
    _check(frames)
    if frames.shape[1] % 2 or frames.shape[2] % 2:
        raise HarnessError(
            f"frames of {frames.shape[2]}x{frames.shape[1]} cannot be coded as {MP4_PIXELS}",
            "choose an even height and width",
        )
    _write(path, frames, fps, MP4_CODEC, MP4_PIXELS, MP4_OPTIONS)


def write_lossless(path: Path, frames: np.ndarray, *, fps: int) -> None:
    """Write FFV1 in Matroska; reading it back gives the same bytes."""
    _check(frames)
    _write(path, frames, fps, LOSSLESS_CODEC, LOSSLESS_PIXELS, LOSSLESS_OPTIONS)


def read(path: Path) -> np.ndarray:
    """Read a clip, by decord where it is installed and by PyAV otherwise.

    A lossless clip is always read by PyAV, which keeps its RGB bytes.

    Raises:
        HarnessError: The file is missing or is no video.
    """
    if not path.is_file():
        raise HarnessError(f"there is no clip '{path}'", "run the same command again to make it")
    decord = _decord() if path.suffix == ".mp4" else None
    if decord is not None:
        try:
            return read_decord(path, decord)
        except (decord.DECORDError, RuntimeError):
            # decord 0.6 cannot hand out frames whose width is no multiple of 32. Both readers give
            # the same bytes where both work, and PyAV says what is wrong with a broken file.
            pass
    return read_av(path)


def read_av(path: Path) -> np.ndarray:
    """Read a clip by PyAV.

    Raises:
        HarnessError: The file is no video.
    """
    try:
        with av.open(str(path)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    except (av.FFmpegError, IndexError) as cause:
        raise _unreadable(path, cause) from cause
    if not frames:
        raise _unreadable(path, ValueError("no frames"))
    return np.stack(frames)


def read_decord(path: Path, decord: Any) -> np.ndarray:
    """Read a clip by decord.

    Raises:
        RuntimeError: The file is no video, or one that decord cannot read.
        decord.DECORDError: Likewise.
    """
    video = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
    frames: np.ndarray = video.get_batch(range(len(video))).asnumpy()
    return frames


def _decord() -> Any | None:
    try:
        import decord
    except ImportError:  # has no wheel for every platform
        return None
    return decord


def _unreadable(path: Path, cause: Exception) -> HarnessError:
    return HarnessError(
        f"'{path}' cannot be read as a video ({cause.__class__.__name__})",
        "remove it and run the same command again",
    )


def _check(frames: np.ndarray) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise ValueError(f"frames are {frames.dtype} {frames.shape}, not uint8 [T, H, W, 3]")


def _write(
    path: Path,
    frames: np.ndarray,
    fps: int,
    codec: str,
    pixels: str,
    options: Mapping[str, str],
) -> None:
    with av.open(str(path), mode="w") as container:
        container.flags |= av.container.Flags.bitexact.value
        stream = container.add_stream(codec, rate=fps, options=dict(options))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pixels
        for image in frames:
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pixels)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
