"""CLIPSIM and CLIP-Temp on a tiny CLIP with random weights in the checkpoint's own format."""

from __future__ import annotations

import itertools
import json
import string
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from harness.errors import HarnessError, InfraError, UsageError
from harness.score import clip, clip_weights
from harness.score.clip import CLIPScores, clip_scores

if TYPE_CHECKING:
    from pathlib import Path

SIDE = 32
PROMPT = "a red dog runs"


def save_tiny_clip(folder: Path, seed: int = 0) -> Path:
    """Write a random CLIP that knows single letters."""
    from transformers import CLIPConfig, CLIPModel

    folder.mkdir(parents=True)
    letters = [*string.ascii_lowercase, *(f"{c}</w>" for c in string.ascii_lowercase)]
    words = [*letters, "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    config = CLIPConfig(
        text_config={
            "vocab_size": len(words), "hidden_size": 16, "intermediate_size": 32,
            "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 20,
            "bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1,
        },
        vision_config={
            "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": SIDE, "patch_size": 8,
        },
        projection_dim=12,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIPModel(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # larger than CLIP's first weights, so that frames and words matter
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    model.save_pretrained(folder)
    return folder


def film(seed: int = 0, frames: int = 20, height: int = 40, width: int = 56) -> np.ndarray:
    shape = (frames, height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "home"))
    folder = save_tiny_clip(tmp_path / "clip")
    clip_weights.fetch_clip(folder)
    return folder


def naive(folder: Path, frames: np.ndarray, prompt: str, prepare: object) -> tuple[float, float]:
    """Both values frame by frame, from the towers rather than from the model's joint call."""
    from transformers import CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(folder).eval()
    words = CLIPTokenizer.from_pretrained(folder)(prompt, return_tensors="pt")

    def unit(vector: torch.Tensor) -> np.ndarray:
        found = vector.detach().double().numpy().ravel()
        return found / np.sqrt((found**2).sum())

    text = unit(model.text_projection(model.text_model(**words).pooler_output))
    images = [
        unit(model.visual_projection(model.vision_model(prepare(frame)).pooler_output))  # type: ignore[operator]
        for frame in frames
    ]
    fits = [sum(a * b for a, b in zip(image, text, strict=True)) for image in images]
    steady = [sum(a * b for a, b in zip(*pair, strict=True)) for pair in itertools.pairwise(images)]
    return sum(fits) / len(fits), sum(steady) / len(steady)


def library_pixels(frame: np.ndarray) -> torch.Tensor:
    """Frame as transformers' own processor prepares it."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    return processor(images=frame, return_tensors="pt")["pixel_values"]


def script_pixels(frame: np.ndarray) -> torch.Tensor:
    """Frame squeezed by hand: each pixel from the four around its centre, 0..255."""
    height, width = frame.shape[:2]

    def places(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at = ((np.arange(SIDE) + 0.5) * size / SIDE - 0.5).clip(0, size - 1)
        low = np.floor(at).astype(int)
        return low, np.minimum(low + 1, size - 1), at - low

    (top, bottom, down), (left, right, across) = places(height), places(width)
    x = frame.astype(np.float64)
    across = across[None, :, None]
    upper = x[top][:, left] * (1 - across) + x[top][:, right] * across
    lower = x[bottom][:, left] * (1 - across) + x[bottom][:, right] * across
    down = down[:, None, None]
    found = upper * (1 - down) + lower * down
    return torch.from_numpy(found).permute(2, 0, 1).unsqueeze(0).float()


def test_scores_equal_a_loop_over_frames_with_the_librarys_own_preparation(
    checkpoint: Path,
) -> None:
    found = clip_scores(film(), PROMPT)
    assert set(found) == {metric.name for metric in CLIPScores.metrics}
    expected = naive(checkpoint, film(), PROMPT, library_pixels)
    assert (found["clipsim"], found["clip_temp"]) == pytest.approx(expected, abs=2e-6)


def test_evalcrafters_scores_equal_a_loop_over_frames_squeezed_by_hand(checkpoint: Path) -> None:
    found = clip_scores(film(), PROMPT)
    expected = naive(checkpoint, film(), PROMPT, script_pixels)
    values = (found["clipsim_evalcrafter"], found["clip_temp_evalcrafter"])
    assert values == pytest.approx(expected, abs=2e-6)
    assert abs(found["clipsim"] - found["clipsim_evalcrafter"]) > 1e-3


@pytest.mark.parametrize("size", [(33, 57), (64, 40), (20, 20), (32, 101)])
def test_frames_of_any_size_are_prepared_as_the_library_does(size: tuple[int, int]) -> None:
    frames = film(frames=2, height=size[0], width=size[1])
    expected = torch.cat([library_pixels(frame) for frame in frames])
    assert torch.allclose(clip.clip_pixels(frames, SIDE), expected, atol=1e-6)


def test_a_frozen_clip_has_a_clip_temp_of_one(checkpoint: Path) -> None:
    found = clip_scores(np.repeat(film(frames=1), 18, axis=0), PROMPT)
    assert found["clip_temp"] == pytest.approx(1, abs=1e-6)
    assert found["clip_temp_evalcrafter"] == pytest.approx(1, abs=1e-6)
    assert clip_scores(film(), PROMPT)["clip_temp"] < 0.999


def test_order_of_frames_moves_clip_temp_only(checkpoint: Path) -> None:
    frames = np.concatenate([np.repeat(film(seed, frames=1), 4, axis=0) for seed in (0, 1)])
    mixed = frames[[0, 4, 1, 5, 2, 6, 3, 7]]
    still, flickers = clip_scores(frames, PROMPT), clip_scores(mixed, PROMPT)
    assert flickers["clipsim"] == pytest.approx(still["clipsim"], abs=1e-6)
    assert flickers["clip_temp"] < still["clip_temp"]
    reverse = clip_scores(mixed[::-1], PROMPT)
    assert reverse == pytest.approx(flickers, abs=1e-6)


def test_order_of_words_moves_clipsim_only(checkpoint: Path) -> None:
    found, other = clip_scores(film(), "dog red a"), clip_scores(film(), "a red dog")
    assert abs(found["clipsim"] - other["clipsim"]) > 1e-4
    assert found["clip_temp"] == other["clip_temp"]


def test_what_exceeds_the_text_length_is_cut_off(checkpoint: Path) -> None:
    long = "x" * 18
    assert clip_scores(film(), long) == clip_scores(film(), long + " and more")
    assert clip_scores(film(), long) != clip_scores(film(), "x" * 17)


def test_a_clip_of_one_frame_is_a_property_of_the_clip(checkpoint: Path) -> None:
    with pytest.raises(HarnessError, match="has 1 frame, CLIP-Temp needs 2") as caught:
        clip_scores(film(frames=1), PROMPT)
    assert not isinstance(caught.value, InfraError)


def test_without_weights_the_reason_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path))
    assert clip_weights.clip_missing().endswith(": harness fetch clip-weights")
    assert clip_weights.clip_identity() == clip_weights.clip_about() == ""
    with pytest.raises(InfraError, match="not fetched"):
        clip_scores(film(), PROMPT)


def test_weights_that_changed_are_not_scored_with(checkpoint: Path) -> None:
    weights = checkpoint / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert clip_weights.clip_missing() == ""  # the size holds; reading is left to the worker
    with pytest.raises(InfraError, match=r"model\.safetensors' is not the file"):
        clip_scores(film(), PROMPT)
    weights.write_bytes(content[:-1])
    assert "has changed" in clip_weights.clip_missing()
    weights.unlink()
    assert "is gone" in clip_weights.clip_missing()


def test_other_weights_have_another_identity(checkpoint: Path, tmp_path: Path) -> None:
    first = clip_weights.clip_identity()
    clip_weights.fetch_clip(checkpoint)
    assert clip_weights.clip_identity() == first
    clip_weights.fetch_clip(save_tiny_clip(tmp_path / "other", seed=1))
    assert clip_weights.clip_identity() not in ("", first)


def test_a_folder_without_a_checkpoint_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    held = clip_weights.clip_identity()
    with pytest.raises(UsageError, match="holds no CLIP checkpoint"):
        clip_weights.fetch_clip(tmp_path)
    assert clip_weights.clip_identity() == held
