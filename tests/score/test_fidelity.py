from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from harness.errors import HarnessError
from harness.score import fidelity


def clip(seed: int = 0, frames: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, 32, 40, 3), dtype=np.uint8)


def latents(seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_identical_clips_score_the_cap_one_one_and_zero():
    assert fidelity.fidelity(clip(), clip(), latents(), latents()) == pytest.approx(
        {"psnr_db": 100.0, "ssim": 1.0, "latent_cosine": 1.0, "latent_error": 0.0}
    )


def test_psnr_is_that_of_the_whole_clip():
    reference = clip()
    worse = reference.copy()
    worse[0] = 255 - worse[0]
    mse = np.mean((worse.astype(float) - reference) ** 2)
    found = fidelity.fidelity(worse, reference, latents(), latents())
    assert found["psnr_db"] == pytest.approx(10 * math.log10(255**2 / mse), abs=1e-4)


def test_psnr_of_one_grey_level_in_one_value_stays_under_the_cap():
    reference = np.full((4, 32, 32, 3), 7, dtype=np.uint8)
    other = reference.copy()
    other[0, 0, 0, 0] += 1
    found = fidelity.fidelity(other, reference, latents(), latents())
    assert 80 < found["psnr_db"] < fidelity.PSNR_CAP_DB


def test_ssim_averages_over_frames_whatever_the_batch():
    reference, other = clip(0, frames=6), clip(1, frames=6)
    whole = fidelity.fidelity(other, reference, latents(), latents())["ssim"]
    single = [
        fidelity.fidelity(other[i : i + 1], reference[i : i + 1], latents(), latents())["ssim"]
        for i in range(6)
    ]
    assert whole == pytest.approx(np.mean(single), abs=1e-6)


def test_latent_distances_follow_their_definition():
    x, y = latents(0), latents(1)
    found = fidelity.fidelity(clip(), clip(), x, y)
    a, b = x.flatten().double(), y.flatten().double()
    assert found["latent_error"] == pytest.approx(float(((a - b) ** 2).sum() / (b**2).sum()))
    assert found["latent_cosine"] == pytest.approx(float(a @ b / (a.norm() * b.norm())))


def test_a_clip_of_zero_latents_agrees_with_nothing():
    found = fidelity.fidelity(clip(), clip(), torch.zeros(1, 2, 4, 8, 8), latents())
    assert found["latent_cosine"] == 0.0
    assert found["latent_error"] == pytest.approx(1.0)


def test_half_precision_latents_do_not_overflow():
    big = torch.full((1, 70_000), 300.0, dtype=torch.float16)
    assert fidelity.fidelity(clip(), clip(), big, big)["latent_cosine"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("frames", "found"),
    [
        (clip()[:3], latents()),
        (clip().astype(np.float32), latents()),
        (clip()[..., 0], latents()),
        (clip(frames=5)[:0], latents()),
        (clip(), latents()[..., :4]),
        (clip(), latents() * math.nan),
        (clip(), latents() * math.inf),
    ],
)
def test_what_cannot_be_compared_is_refused_with_a_reason(frames, found):
    with pytest.raises(HarnessError):
        fidelity.fidelity(frames, clip(), found, latents())
