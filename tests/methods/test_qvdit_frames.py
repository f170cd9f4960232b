"""Where frames lie in the input of a linear, and the gains of their tokens."""

from __future__ import annotations

import pytest
import torch

from harness.quant.layers.low_rank import token_gains
from methods.qvdit.frames import FrameLayout, layout_of

CLIP = {"branches": 2, "frames": 3, "video_tokens": 12}


@pytest.mark.parametrize(
    ("shape", "text", "expected"),
    [
        ((2, 12, 5), 0, FrameLayout(frames=3)),
        ((2, 20, 5), 8, FrameLayout(frames=3, text_tokens=8)),
        ((2, 20, 5), -8, FrameLayout(frames=3, text_tokens=-8)),
        ((2, 20, 5), 0, None),  # text of another block, not a joint sequence
        ((8, 3, 5), 0, FrameLayout(frames=3)),  # positions in the batch, a frame a token
        ((6, 4, 5), 0, None),  # frames in the batch
        ((2, 5), 0, None),  # a conditioning vector
    ],
)
def test_the_layout_follows_from_the_shape(
    shape: tuple[int, ...], text: int, expected: FrameLayout | None
) -> None:
    assert layout_of(shape, text_tokens=text, **CLIP) == expected


def test_as_many_positions_as_frames_are_not_guessed_at() -> None:
    assert layout_of((6, 3, 5), branches=2, frames=3, video_tokens=9, text_tokens=0) is None


@pytest.mark.parametrize("text", [2, -2, 0])
def test_frames_are_cut_and_weighed_alike(text: int) -> None:
    tokens, gain = 6 + abs(text), torch.tensor([0.5, 2.0, 3.0])
    x = torch.arange(tokens * 4.0).reshape(1, tokens, 4) + 1
    first = max(text, 0)
    cut = FrameLayout(frames=3, text_tokens=text).cut(x)
    gains = token_gains(gain, tokens, text)
    for frame in range(3):
        rows = slice(first + 2 * frame, first + 2 * frame + 2)
        assert torch.equal(cut[0, frame], x[0, rows].flatten())
        assert gains[rows].tolist() == [float(gain[frame])] * 2
    assert sum(float(g) == 1 for g in gains) == abs(text)


def test_tokens_that_are_no_whole_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="9 tokens are not 2 text tokens and 3 frames"):
        token_gains(torch.ones(3), 9, 2)
