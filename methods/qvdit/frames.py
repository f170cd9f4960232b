"""Where the frames of a clip lie in the input of a linear."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from harness.quant import named_arguments, observing
from methods.qvdit.denoiser_trainer import LATENT, with_output

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.quant import BlockInput, Family, InputGroup


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameLayout:
    """The tokens of a linear that sees frames.

    Attributes:
        frames: Frames, in order; the tokens of one are contiguous.
        text_tokens: Text tokens before the frames; negative where so many stand behind them.
    """

    frames: int
    text_tokens: int = 0

    def cut(self, x: Tensor) -> Tensor:
        """Leave the text out and cut ``[batch, tokens, width]`` to ``[batch, frames, values]``."""
        text = self.text_tokens
        video = x[:, text:] if text >= 0 else x[:, :text]
        return video.reshape(x.shape[0], self.frames, -1)


def layout_of(
    shape: tuple[int, ...], *, branches: int, frames: int, video_tokens: int, text_tokens: int
) -> FrameLayout | None:
    """Layout of an input of a shape, None where it holds no frames or one frame a row.

    Args:
        shape: Of the input, ``[batch, tokens, width]``.
        branches: Guidance branches in the batch.
        frames: Frames of the clip as its tokens count them.
        video_tokens: Tokens of the clip.
        text_tokens: Of the joint sequence, before the video or, negative, behind it; 0 for none.
    """
    if len(shape) != 3:
        return None
    batch, tokens, _ = shape
    if batch == branches and tokens == video_tokens:
        return FrameLayout(frames=frames)
    if batch == branches and text_tokens and tokens == video_tokens + abs(text_tokens):
        return FrameLayout(frames=frames, text_tokens=text_tokens)
    # positions folded into the batch; as many positions as frames could be the other way round
    places = video_tokens // frames
    if tokens == frames != places and batch == branches * places:
        return FrameLayout(frames=frames)
    return None


@torch.no_grad()
def frame_layouts(
    denoiser: nn.Module, family: Family, targets: Mapping[str, InputGroup], call: BlockInput
) -> dict[str, FrameLayout]:
    """Layout of every target linear that sees frames, by qualified name.

    Args:
        denoiser: In full precision.
        family: Its facts.
        targets: Target linears with their groups.
        call: One call of the denoiser.
    """
    latent = call.streams[LATENT]
    shapes: dict[str, tuple[int, ...]] = {}
    text: list[int] = []
    _, first = family.blocks(denoiser)[0]

    def see(name: str, x: Tensor) -> None:
        shapes[name] = tuple(x.shape)

    def see_block(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        text.append(_text_tokens(family, named_arguments(block, args, kwargs)))

    seen = [n for n, g in targets.items() if not g.modulation and g.stream_of(n) != "text"]
    handle = first.register_forward_pre_hook(see_block, with_kwargs=True, prepend=True)
    try:
        with observing(denoiser, seen, see):
            with_output(denoiser, call)
    finally:
        handle.remove()
    found = {
        name: layout_of(
            shape,
            branches=call.branches,
            frames=family.frames(denoiser, latent, call.fixed).shape[1],
            video_tokens=family.tokens(denoiser, latent[:1]).shape[0],
            text_tokens=text[0],
        )
        for name, shape in shapes.items()
    }
    return {name: layout for name, layout in found.items() if layout is not None}


def _text_tokens(family: Family, arguments: Mapping[str, Any]) -> int:
    """Text tokens of the joint sequence; negative behind the video, 0 where text is apart."""
    order = family.attention_order
    text: int = sum(arguments[s].shape[1] for s in order if s != family.video_stream)
    return -text if order[0] == family.video_stream else text
