"""Attention mass by tiles equals the explicit map."""

from __future__ import annotations

import pytest
import torch

from harness.quant.calibration import attention_mass as module
from harness.quant.calibration.attention_mass import attention_mass, token_weights


@pytest.mark.parametrize("tile_elements", [1, 100, 1 << 24])
def test_streaming_equals_the_explicit_map(
    tile_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TILE_ELEMENTS", tile_elements)
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 3, 11, 8, generator=generator)
    key = torch.randn(2, 3, 11, 8, generator=generator)
    explicit = torch.softmax(query @ key.transpose(-1, -2) / 8**0.5, -1).sum((1, 2))
    torch.testing.assert_close(attention_mass(query, key), explicit)
    torch.testing.assert_close(explicit.sum(1), torch.full((2,), 33.0))


def test_weights_span_lambda_min_to_lambda_max_over_all_streams() -> None:
    masses = {"text": torch.tensor([[4.0, 0.0]]), "video": torch.tensor([[1.0, 2.0, 3.0]])}
    weights = token_weights(masses, lowest=0.5)
    assert weights["text"].tolist() == [[1.0, 0.5]]
    assert weights["video"].tolist() == [[0.625, 0.75, 0.875]]


def test_normalising_within_video_leaves_text_at_full_weight() -> None:
    masses = {"text": torch.tensor([[9.0]]), "video": torch.tensor([[1.0, 2.0, 3.0]])}
    weights = token_weights(masses, lowest=0.0, only="video")
    assert weights["text"].tolist() == [[1.0]]
    assert weights["video"].tolist() == [[0.0, 0.5, 1.0]]


def test_equal_masses_do_not_divide_by_zero() -> None:
    weights = token_weights({"video": torch.ones(1, 4)}, lowest=0.5)
    assert bool(torch.isfinite(weights["video"]).all())
