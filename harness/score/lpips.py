"""LPIPS to the unquantized clip from the same noise (Zhang et al. 2018, AlexNet), mean over frames.

It is computed where the weights of its backbone are on the disk; they are never downloaded.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import HarnessError
from harness.score.fidelity import BATCH, PEAK, batched, check_frames
from harness.score.scorer import Clip, Scorer
from harness.spec import FIDELITY, Metric
from harness.store.provenance import package_version

if TYPE_CHECKING:
    import numpy as np


class LPIPS(Scorer):
    """Learned perceptual distance to the unquantized clip."""

    name = "lpips"
    about = "fidelity to fp, where it can be computed"
    metrics = (
        Metric(
            name="lpips", unit="ratio", better="lower", title="LPIPS", block=FIDELITY, digits=3,
            headline=True,
        ),
    )  # fmt: skip
    always = True
    paired = True
    packages = ("torch", "torchmetrics", "torchvision")
    sources = ("harness.score.fidelity",)

    def missing(self) -> str:
        """Why it cannot be computed here; finds out without importing torch."""
        return lpips_missing()

    def score(self, clip: Clip, reference: Clip | None) -> dict[str, float]:
        """Compare exact frames."""
        if reference is None:
            raise ValueError("a paired scorer was called without a reference")
        return {"lpips": lpips(clip.frames(), reference.frames())}


def lpips_missing() -> str:
    """Why LPIPS is not computed, empty where it is; finds out without importing torch."""
    if not package_version("torchvision"):
        return "torchvision is not installed (pip install 'vdit-quant-harness[lpips]')"
    cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    torch_home = Path(os.environ.get("TORCH_HOME") or Path(cache_home) / "torch")
    checkpoints = torch_home / "hub" / "checkpoints"
    if not any(checkpoints.glob("alexnet-*.pth")):
        return f"AlexNet weights are not in {checkpoints}"
    return ""


def lpips(frames: np.ndarray, frames_fp: np.ndarray) -> float:
    """LPIPS of a clip against its reference, mean over frames.

    Args:
        frames: The clip, uint8 ``[frames, height, width, 3]``.
        frames_fp: The reference clip, same shape.

    Raises:
        HarnessError: The backbone's weights are not on this machine.
    """
    reason = lpips_missing()
    if reason:
        raise HarnessError(f"lpips cannot be computed: {reason}", "leave lpips out, or fetch it")
    import torch
    from torchmetrics.functional.image import learned_perceptual_image_patch_similarity

    check_frames(frames, frames_fp)
    total = 0.0
    for start in range(0, len(frames), BATCH):
        pair = (batched(x[start : start + BATCH]) / PEAK for x in (frames, frames_fp))
        with torch.inference_mode():
            total += float(
                learned_perceptual_image_patch_similarity(
                    *pair, net_type="alex", reduction="sum", normalize=True
                )
            )
    return total / len(frames)
