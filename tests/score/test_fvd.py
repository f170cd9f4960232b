"""The Frechet distance against closed forms, and the features' network where torchvision is."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from harness.errors import HarnessError, InfraError
from harness.score import fvd, fvd_weights
from harness.score.fvd import MIN_CLIPS, distance, too_few

if TYPE_CHECKING:
    from pathlib import Path

FEW = 40


def exact(mean: np.ndarray, covariance: np.ndarray, seed: int, clips: int = FEW) -> np.ndarray:
    """A sample whose mean and unbiased covariance are exactly these."""
    noise = np.random.default_rng(seed).standard_normal((clips, len(mean)))
    basis, _ = np.linalg.qr(noise - noise.mean(axis=0))
    return mean + basis * np.sqrt(clips - 1) @ np.linalg.cholesky(covariance).T


def spread(seed: int, size: int = 5) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((size, size))
    return x @ x.T + 0.1 * np.eye(size)


@pytest.mark.parametrize(("clips", "apart"), [(1000, 133), (2000, 66)])
def test_two_draws_from_one_distribution_are_apart_by_what_the_docs_say(clips, apart):
    noise = np.random.default_rng(0)
    first, second = (noise.standard_normal((clips, 512)) for _ in range(2))
    assert round(distance(first, second)) == apart


def test_identical_sets_are_at_distance_zero_in_any_order():
    rows = exact(np.arange(5.0), spread(0), seed=1)
    assert distance(rows, rows, at_least=FEW) == pytest.approx(0, abs=1e-10)
    mixed = rows[np.random.default_rng(2).permutation(FEW)]
    assert distance(rows, mixed, at_least=FEW) == pytest.approx(0, abs=1e-10)


def test_a_shift_alone_is_its_squared_length():
    rows = exact(np.zeros(5), spread(0), seed=1)
    shift = np.array([3.0, 0.0, 4.0, 0.0, 0.0])
    assert distance(rows + shift, rows, at_least=FEW) == pytest.approx(25)


def test_gaussians_with_common_axes_follow_the_closed_form():
    a, b = np.array([1.0, 4.0, 9.0]), np.array([4.0, 1.0, 0.25])
    found = distance(
        exact(np.zeros(3), np.diag(a), seed=1), exact(np.ones(3), np.diag(b), seed=2), at_least=FEW
    )
    assert found == pytest.approx(3 + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum())


def test_gaussians_with_other_axes_agree_with_scipys_matrix_root():
    from scipy.linalg import sqrtm

    a, b = spread(3), spread(4)
    shift = np.linspace(-1, 1, 5)
    expected = shift @ shift + np.trace(a + b - 2 * sqrtm(a @ b).real)
    found = distance(exact(shift, a, seed=1), exact(np.zeros(5), b, seed=2), at_least=FEW)
    assert found == pytest.approx(expected)


def test_the_distance_is_symmetric_and_ignores_the_order_of_clips():
    a, b = exact(np.zeros(5), spread(3), seed=1), exact(np.ones(5), spread(4), seed=2)
    found = distance(a, b, at_least=FEW)
    assert distance(b, a, at_least=FEW) == pytest.approx(found)
    assert distance(a[::-1], b[::-1], at_least=FEW) == pytest.approx(found)
    assert found > 0.1


def test_sets_of_low_rank_have_a_finite_distance():
    a = exact(np.zeros(2), np.eye(2), seed=1)
    flat = np.pad(a, ((0, 0), (0, 510)))
    assert distance(flat, flat, at_least=FEW) == pytest.approx(0, abs=1e-8)
    assert distance(2 * flat, flat, at_least=FEW) == pytest.approx(2)


def test_too_few_clips_give_a_reason_and_no_number():
    assert too_few(16) == "needs 1 000 clips, has 16"
    assert too_few(MIN_CLIPS) == ""
    enough = np.random.default_rng(0).standard_normal((MIN_CLIPS, 3))
    assert distance(enough, enough) == pytest.approx(0, abs=1e-10)
    for pair in ((enough[1:], enough), (enough, enough[1:])):
        with pytest.raises(HarnessError, match="fvd_r3d18_to_fp needs 1 000 clips, has 999"):
            distance(*pair)


def test_independent_draws_are_nearer_the_more_there_are():
    noise = np.random.default_rng(0)
    few, many = (
        distance(*noise.standard_normal((2, clips, 20)), at_least=FEW) for clips in (FEW, 10 * FEW)
    )
    assert many == pytest.approx(few / 10, rel=0.5)


def test_features_that_are_not_finite_are_no_number():
    rows = np.zeros((FEW, 3))
    rows[7, 1] = np.nan
    with pytest.raises(HarnessError, match="not finite"):
        distance(rows, np.zeros((FEW, 3)), at_least=FEW)


def test_a_clip_of_one_frame_is_a_property_of_the_clip():
    with pytest.raises(HarnessError, match="has 1 frame") as caught:
        fvd.features(np.zeros((1, 16, 16, 3), dtype=np.uint8))
    assert not isinstance(caught.value, InfraError)


def test_without_weights_the_reason_names_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(fvd_weights, "package_version", lambda name: "")
    assert "pip install 'vdit-quant-harness[fvd]'" in fvd_weights.fvd_missing()
    monkeypatch.setattr(fvd_weights, "package_version", lambda name: "1.0")
    assert fvd_weights.fvd_missing().endswith(": harness fetch fvd-weights")
    with pytest.raises(InfraError, match="weights are not at"):
        fvd.features(np.zeros((2, 16, 16, 3), dtype=np.uint8))


def test_a_file_that_is_not_torchvisions_is_not_computed_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / fvd_weights.CHECKPOINT
    path.parent.mkdir(parents=True)
    path.write_bytes(b"something else")
    with pytest.raises(InfraError, match="is not torchvision's file"):
        fvd.features(np.zeros((2, 16, 16, 3), dtype=np.uint8))


def test_features_are_those_of_the_network_before_its_last_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    try:
        from torchvision.models.video import R3D_18_Weights, r3d_18
    except (ImportError, RuntimeError) as cause:  # built for another torch
        pytest.skip(f"torchvision cannot be imported: {cause}")
    weights = R3D_18_Weights.KINETICS400_V1
    assert weights.url.endswith(fvd_weights.CHECKPOINT)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = r3d_18(weights=None).eval()
    path = tmp_path / "hub" / "checkpoints" / fvd_weights.CHECKPOINT
    path.parent.mkdir(parents=True)
    torch.save(network.state_dict(), path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(fvd_weights, "SHA256_PREFIX", digest[:8])
    shape = (4, 40, 48, 3)
    frames = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    found = fvd.features(frames)
    assert len(found) == 512
    assert fvd.features(frames) == found
    clip = weights.transforms()(torch.tensor(frames).permute(0, 3, 1, 2))
    with torch.no_grad():
        scores = network(clip.unsqueeze(0))[0]
        head = network.fc(torch.tensor(found))
    assert torch.allclose(head, scores, atol=1e-5)
