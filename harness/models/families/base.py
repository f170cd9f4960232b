"""What the harness must know about a family of video diffusion transformers.

Facts only: which modules are the blocks, which linears read the same tensor and what they are for,
and where a channel scale of that tensor can be folded so that it costs nothing at run time. Where
that can be is said in the words of ``fold_targets.py``; the folding itself is ``fold.py``.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from diffusers import DiffusionPipeline
    from torch import Tensor, nn

    from harness.models.block_input import BlockInput
    from harness.models.families.fold_targets import Fold
    from harness.spec import GenSpec


Role = Literal[
    "attention_in",
    "attention_out",
    "cross_attention_query",
    "cross_attention_text",
    "cross_attention_image",
    "cross_attention_out",
    "feed_forward_in",
    "feed_forward_out",
    "attention_feed_forward_in",
    "attention_feed_forward_out",
    "modulation",
]
"""What an input is to its block. ``attention`` alone is self-attention, text and video together
where both attend jointly; ``attention_feed_forward`` is a block that computes both side by side."""

Stream = Literal["video", "text", "image", "both"]
"""Tokens that an input holds; ``both`` are video and text."""

Purpose = Literal[
    "query",
    "key",
    "value",
    "attention_out",
    "feed_forward_in",
    "feed_forward_out",
    "attention_feed_forward_out",
    "modulation",
]
"""What a linear makes."""

FEED_FORWARD: tuple[Purpose, ...] = (
    "feed_forward_in",
    "feed_forward_out",
    "attention_feed_forward_out",
)
"""Purposes of the linears that hold a feed-forward network, one fused with an attention's output
projection counted in."""

_PURPOSES: dict[Role, tuple[Purpose, ...]] = {
    "attention_in": ("query", "key", "value"),
    "attention_out": ("attention_out",),
    "cross_attention_query": ("query",),
    "cross_attention_text": ("key", "value"),
    "cross_attention_image": ("key", "value"),
    "cross_attention_out": ("attention_out",),
    "feed_forward_in": ("feed_forward_in",),
    "feed_forward_out": ("feed_forward_out",),
    "attention_feed_forward_in": ("query", "key", "value", "feed_forward_in"),
    "attention_feed_forward_out": ("attention_feed_forward_out",),
    "modulation": ("modulation",),
}
"""The linears of a role in the order in which a group names them; all alike where one stands."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InputGroup:
    """Linears that read the same tensor and therefore share input transform and activation grid.

    Attributes:
        name: What it is called in curves and messages; one a block. What it is, ``role`` says.
        role: What the input is to its block.
        linears: Relative to the block, in the order of ``purpose``: queries, keys, values.
        stream: Tokens that the input holds; of a modulation, those that it shifts and scales.
        temporal: An attention among the frames of one position, not within a frame.
        fold: Where a channel scale of the shared input goes; None if it must be applied online.
        split: The linears read different tokens of one tensor, the first the video's, the other the
            text's. They therefore share one fold: statistics of the input go over all of them.

    Raises:
        ValueError: The role has another number of linears.
    """

    name: str
    role: Role
    linears: tuple[str, ...]
    stream: Stream = "video"
    temporal: bool = False
    fold: Fold | None = None
    split: bool = False

    def __post_init__(self) -> None:
        purposes = _PURPOSES[self.role]
        if len(purposes) not in (1, len(self.linears)):
            raise ValueError(
                f"input group {self.name!r} has {len(self.linears)} linears, its role "
                f"{self.role} has {len(purposes)}: {', '.join(purposes)}"
            )

    @property
    def modulation(self) -> bool:
        """Whether the input is one conditioning vector for each sample, not a token sequence.

        The weights are then quantized at the nominal width, the activation stays at 16 bits.
        """
        return self.role == "modulation"

    @property
    def observed(self) -> tuple[str, ...]:
        """The linears whose inputs together are the group's input."""
        return self.linears if self.split else self.linears[:1]

    def purpose(self, linear: str) -> Purpose:
        """What one of the linears makes; its name may be relative to the block or qualified."""
        place, purposes = self._place(linear), _PURPOSES[self.role]
        return purposes[place if len(purposes) > 1 else 0]

    def stream_of(self, linear: str) -> Stream:
        """Tokens that one of the linears reads; its name as in ``purpose``."""
        place = self._place(linear)
        if not self.split:
            return self.stream
        return "video" if place == 0 else "text"

    def _place(self, linear: str) -> int:
        for place, own in enumerate(self.linears):
            if f".{linear}".endswith(f".{own}"):
                return place
        raise ValueError(f"'{linear}' is no linear of input group {self.name!r}")


class Family(Protocol):
    """Facts about one family."""

    @property
    def name(self) -> str:
        """Registered name."""

    @property
    def streams(self) -> tuple[str, ...]:
        """Block keyword arguments that the block returns updated, in its return order."""

    @property
    def video_stream(self) -> str:
        """The one of ``streams`` that holds the video tokens."""

    @property
    def attention_order(self) -> tuple[str, ...]:
        """Streams in the order in which the self-attention concatenates them."""

    @property
    def self_attention(self) -> str:
        """Module of a block that attends among its tokens, relative to the block."""

    @property
    def guidance(self) -> str:
        """How the sampler evaluates the guidance branches of a step.

        ``stacked`` in one batch, the conditional one last; ``calls`` in two calls, the conditional
        one first; ``embedded`` not at all: the scale is an input of the denoiser.
        """

    @property
    def single_precision(self) -> tuple[str, ...]:
        """Parts of the pipeline that are loaded in float32 whatever the others are run in."""
        return ()

    @property
    def text_cleaners(self) -> tuple[str, ...]:
        """Distributions by which the pipeline cleans a prompt where they are installed.

        The text that its encoder sees depends on them, so they are part of the cohort.
        """
        return ()

    def blocks(self, transformer: nn.Module) -> list[tuple[str, nn.Module]]:
        """Qualified names and modules of the transformer blocks, in execution order."""

    def groups(self, block: nn.Module) -> tuple[InputGroup, ...]:
        """Input groups of a block; together they name every target linear once."""

    def advance(
        self, transformer: nn.Module, index: int, given: BlockInput, out: dict[str, Tensor]
    ) -> BlockInput:
        """Inputs of block ``index + 1`` from the outputs ``out`` of block ``index`` on ``given``.

        For most families the streams are handed on as they are.
        """
        del transformer, index
        return given.with_streams(out)

    def tokens(self, transformer: nn.Module, latent: Tensor) -> Tensor:
        """Cut a latent ``[1, ...]`` into the patches that are embedded, ``[tokens, features]``."""

    def frames(self, transformer: nn.Module, value: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """Cut latents or denoiser outputs into their frames, ``[batch, frames, features]``.

        Frames as the video tokens count them: latent frames that share a patch are one. The tokens
        of a frame are contiguous, frames in order.

        Args:
            transformer: The denoiser.
            value: Latent or output of the denoiser, ``[batch, ...]``.
            arguments: Of the denoiser call, where a family packs its tokens.
        """

    def noise_shape(self, pipeline: DiffusionPipeline, gen: GenSpec) -> tuple[int, ...]:
        """Shape of the initial latents as they are drawn, ``[1, ...]``."""

    def latents(self, pipeline: DiffusionPipeline, noise: Tensor) -> Tensor:
        """The drawn latents in the form and dtype that the pipeline takes."""

    def arguments(self, gen: GenSpec) -> dict[str, Any]:
        """What the pipeline is called with besides text, size, steps, guidance and latents."""

    def latent_channels(self, transformer: nn.Module) -> int | None:
        """Channels of the denoiser's input, from the first, that are denoised; None for all.

        The others condition it and are the same at every step.
        """
        del transformer
        return None

    def trimmed(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of a denoiser call without text that the denoiser hides from all its tokens.

        The output is the same; statistics of a layer's input then are of tokens that matter.
        """
        return dict(arguments)

    @contextmanager
    def sampling(
        self, pipeline: DiffusionPipeline, gen: GenSpec, on_step: Callable[[int, Tensor], None]
    ) -> Iterator[dict[str, Any]]:
        """Make ready for one call of the pipeline that tells its steps.

        Args:
            pipeline: What is called; as it was when the context is left.
            gen: Settings.
            on_step: To be called with the step index and the latents after that step.

        Yields:
            Arguments of the call that set the guidance and report the steps.
        """
        del pipeline

        def report(_: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            del timestep
            on_step(step, values["latents"])
            return values

        yield {"guidance_scale": gen.guidance, "callback_on_step_end": report}

    def encode_text(
        self, pipeline: DiffusionPipeline, text: str, gen: GenSpec
    ) -> dict[str, Tensor | None]:
        """Encode a prompt and the negative prompt by the pipeline's own ``encode_prompt``.

        Returns:
            The arguments that the pipeline takes in place of the texts, by name; those of the
            negative prompt are None or absent without guidance.
        """

    def decoded_at_once(self, gen: GenSpec) -> int:
        """Places at which the decoder's widest feature maps stand at once when it does not tile.

        Frames x height x width of the whole clip, unless the decoder takes a few frames at a time
        or computes at a lower resolution.
        """
        return gen.frames * gen.height * gen.width


def both_branches(
    pipeline: Any, text: str, gen: GenSpec, names: tuple[str, ...]
) -> dict[str, Tensor | None]:
    """Encode both guidance branches by an ``encode_prompt`` that returns one value for each name.

    The form that most pipelines share.
    """
    made = pipeline.encode_prompt(
        prompt=text,
        negative_prompt=gen.negative_prompt or None,
        do_classifier_free_guidance=gen.guidance > 1,
        max_sequence_length=gen.max_text_tokens,
    )
    return dict(zip(names, made, strict=True))


def linear_at(root: nn.Module, name: str) -> nn.Linear:
    """Look up the linear at a qualified name.

    Raises:
        AttributeError: There is no such module.
        TypeError: The module is not a Linear.
    """
    from torch import nn  # here, so that naming a family costs no torch

    module = root.get_submodule(name)
    if not isinstance(module, nn.Linear):
        raise TypeError(f"module '{name}' is a {type(module).__name__}, not a Linear")
    return module


def target_groups(family: Family, block: nn.Module, modulation: str = "w") -> list[InputGroup]:
    """Input groups of a block whose linears a method has to quantize.

    Args:
        family: Facts.
        block: The block.
        modulation: ``w`` counts modulation linears in, ``fp`` leaves them out.

    Raises:
        ValueError: Another value of ``modulation``.
    """
    if modulation not in ("w", "fp"):
        raise ValueError(f"modulation is {modulation!r}, expected w or fp")
    return [g for g in family.groups(block) if modulation == "w" or not g.modulation]


def target_linears(
    family: Family, transformer: nn.Module, modulation: str = "w"
) -> dict[str, InputGroup]:
    """Every linear that a method has to quantize, by qualified name, with its group.

    Args:
        family: Facts.
        transformer: The denoiser.
        modulation: As in ``target_groups``.
    """
    return {
        f"{name}.{linear}": group
        for name, block in family.blocks(transformer)
        for group in target_groups(family, block, modulation)
        for linear in group.linears
    }
