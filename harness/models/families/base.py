"""What the harness must know about a family of video diffusion transformers.

Facts only: which modules are the blocks, which linears read the same tensor, and where a channel
scale of that tensor can be folded so that it costs nothing at run time. The folding itself is
``fold.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from harness.quant.capture import BlockInput


@dataclass(frozen=True, kw_only=True, slots=True)
class ModulationFold:
    """Fold into the linear that produces the adaLN shift and scale.

    PTQ4DiT (arXiv 2405.16005), eq. 19-21.

    Attributes:
        linear: The modulation linear, relative to the block.
        chunks: Equal chunks its output is split into.
        pairs: (shift, scale) chunk indices, one pair for each stream that feeds the group.
    """

    linear: str
    chunks: int
    pairs: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ValueFold:
    """Fold into the value projections.

    An attention output channel is a token mix of one value channel, so it takes that one's scale.

    Attributes:
        linears: Every value projection that feeds the same attention sum, relative to the block.
    """

    linears: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class InputGroup:
    """Linears that read the same tensor and therefore share input transform and activation grid.

    Attributes:
        name: ``attn_in``, ``attn_out``, ``ff_in``, ``ff_out``, ...
        linears: Relative to the block.
        fold: Where a channel scale of the shared input goes; None if it must be applied online.
        modulation: The input is one conditioning vector for each sample, not a token sequence: the
            weights are quantized at the nominal width, the activation stays at 16 bits.
    """

    name: str
    linears: tuple[str, ...]
    fold: ModulationFold | ValueFold | None = None
    modulation: bool = False


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


def target_linears(family: Family, transformer: nn.Module) -> dict[str, InputGroup]:
    """Every linear that a method has to quantize, by qualified name, with its group."""
    return {
        f"{name}.{linear}": group
        for name, block in family.blocks(transformer)
        for group in family.groups(block)
        for linear in group.linears
    }
