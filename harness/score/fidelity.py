"""How close a clip is to the unquantized model's clip from the same noise.

All values are paired: same prompt, same seed, same cohort. Frames are compared before lossy
encoding.

    psnr_db        from the mean squared error of the whole clip, peak 255, capped at 100 dB
    ssim           Wang et al. 2004 (Gaussian 11 x 11, sigma 1.5), mean over frames
    latent_cosine  cosine of the final latents
    latent_error   ||x - x_fp||^2 / ||x_fp||^2 of the final latents
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from harness.errors import HarnessError
from harness.score.scorer import Clip, Scorer
from harness.spec import FIDELITY, Metric

if TYPE_CHECKING:
    import numpy as np
    import torch

PSNR_CAP_DB = 100.0  # identical frames have no finite PSNR; the cap keeps their mean defined
PEAK = 255.0
BATCH = 4  # frames at a time: SSIM holds five filtered copies of each


class Fidelity(Scorer):
    """PSNR, SSIM and the distance of the final latents to the unquantized clip."""

    name = "fidelity"
    about = "fidelity to fp, always"
    metrics = (
        Metric(
            name="psnr_db", unit="dB", better="higher", title="PSNR\ndB", block=FIDELITY,
            interval=True, headline=True,
        ),
        Metric(
            name="ssim", unit="ratio", better="higher", title="SSIM", block=FIDELITY,
            digits=3, interval=True, headline=True,
        ),
        Metric(
            name="latent_error", unit="ratio", better="lower", title="latent\nerror",
            block=FIDELITY, digits=3, significant=True, interval=True, headline=True,
        ),
        Metric(
            name="latent_cosine", unit="ratio", better="higher", title="latent\ncosine",
            block=FIDELITY, digits=4,
        ),
    )  # fmt: skip
    always = True
    paired = True
    packages = ("torch", "torchmetrics")

    def score(self, clip: Clip, reference: Clip | None) -> dict[str, float]:
        """Compare exact frames and final latents."""
        if reference is None:
            raise ValueError("a paired scorer was called without a reference")
        return fidelity(clip.frames(), reference.frames(), clip.latents(), reference.latents())


def fidelity(
    frames: np.ndarray, frames_fp: np.ndarray, latents: torch.Tensor, latents_fp: torch.Tensor
) -> dict[str, float]:
    """Compare a clip with its reference.

    Args:
        frames: The clip, uint8 ``[frames, height, width, 3]``.
        frames_fp: The reference clip, same shape.
        latents: Final latents of the clip, any shape.
        latents_fp: Final latents of the reference, same shape.

    Returns:
        ``psnr_db``, ``ssim``, ``latent_cosine``, ``latent_error``.

    Raises:
        HarnessError: Shapes or types differ, or latents are not finite.
    """
    check_frames(frames, frames_fp)
    cosine, error = _latent_distances(latents, latents_fp)
    return {
        "psnr_db": _psnr_db(frames, frames_fp),
        "ssim": _ssim(frames, frames_fp),
        "latent_cosine": cosine,
        "latent_error": error,
    }


def check_frames(frames: np.ndarray, frames_fp: np.ndarray) -> None:
    """Refuse anything but two uint8 clips of one shape."""
    import numpy as np

    for clip in (frames, frames_fp):
        if clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[-1] != 3 or not clip.size:
            raise HarnessError(
                f"a clip is uint8 [frames, height, width, 3], not {clip.dtype} {list(clip.shape)}",
                "hand over the decoded frames",
            )
    if frames.shape != frames_fp.shape:
        raise HarnessError(
            f"clip {list(frames.shape)} and reference {list(frames_fp.shape)} differ in shape",
            "compare clips of the same generation settings",
        )


def _psnr_db(frames: np.ndarray, frames_fp: np.ndarray) -> float:
    """PSNR from the squared error of the whole clip, capped."""
    import numpy as np
    from torchmetrics.functional.image import peak_signal_noise_ratio

    if np.array_equal(frames, frames_fp):
        return PSNR_CAP_DB
    value = peak_signal_noise_ratio(batched(frames), batched(frames_fp), data_range=PEAK)
    return min(PSNR_CAP_DB, float(value))


def _ssim(frames: np.ndarray, frames_fp: np.ndarray) -> float:
    """SSIM of each frame, averaged over the clip."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    total = 0.0
    for start in range(0, len(frames), BATCH):
        pair = (batched(x[start : start + BATCH]) for x in (frames, frames_fp))
        total += float(structural_similarity_index_measure(*pair, data_range=PEAK, reduction="sum"))
    return total / len(frames)


def _latent_distances(latents: torch.Tensor, latents_fp: torch.Tensor) -> tuple[float, float]:
    """Cosine and relative squared error of the latents, in double precision."""
    if latents.shape != latents_fp.shape:
        raise HarnessError(
            f"latents {list(latents.shape)} and reference {list(latents_fp.shape)} differ in shape",
            "compare clips of the same generation settings",
        )
    x, reference = latents.double().flatten(), latents_fp.double().flatten()
    size, size_fp = float(x.norm()), float(reference.norm())
    if not (math.isfinite(size) and math.isfinite(size_fp)) or size_fp == 0.0:
        raise HarnessError(
            "the final latents are not finite, or the reference is zero everywhere",
            "the model diverged at these bits; try wider ones",
        )
    # An all-zero clip points nowhere: no agreement with the reference.
    cosine = float(x @ reference) / (size * size_fp) if size else 0.0
    return max(-1.0, min(1.0, cosine)), float((x - reference).square().sum()) / size_fp**2


def batched(frames: np.ndarray) -> torch.Tensor:
    """``[frames, height, width, 3]`` uint8 to ``[frames, 3, height, width]`` float."""
    import numpy as np
    import torch

    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float()
