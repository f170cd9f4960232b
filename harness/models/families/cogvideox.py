"""CogVideoX (arXiv 2408.06072): one joint stream of text and video tokens through shared linears.

Both norms of a block emit shift, scale and gate for video (chunks 0-2) and text (chunks 3-5) from
one modulation linear; the LayerNorm between is affine and shared by both, so it is never scaled
itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.models.families.base import InputGroup, ModulationFold, ValueFold

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from harness.quant.capture import BlockInput

_PAIRS = ((0, 1), (3, 4))


class CogVideoX:
    """Facts about ``CogVideoXTransformer3DModel``."""

    name = "cogvideox"
    streams = ("hidden_states", "encoder_hidden_states")
    video_stream = "hidden_states"
    attention_order = ("encoder_hidden_states", "hidden_states")

    def blocks(self, transformer: nn.Module) -> list[tuple[str, nn.Module]]:
        """Return ``transformer_blocks.<i>``."""
        blocks = transformer.get_submodule("transformer_blocks").children()
        return [(f"transformer_blocks.{i}", block) for i, block in enumerate(blocks)]

    def groups(self, block: nn.Module) -> tuple[InputGroup, ...]:
        """Return the four token inputs and the two modulation inputs of a block."""
        del block
        return (
            InputGroup(
                name="attn_in",
                linears=("attn1.to_q", "attn1.to_k", "attn1.to_v"),
                fold=ModulationFold(linear="norm1.linear", chunks=6, pairs=_PAIRS),
            ),
            InputGroup(
                name="attn_out",
                linears=("attn1.to_out.0",),
                fold=ValueFold(linears=("attn1.to_v",)),
            ),
            InputGroup(
                name="ff_in",
                linears=("ff.net.0.proj",),
                fold=ModulationFold(linear="norm2.linear", chunks=6, pairs=_PAIRS),
            ),
            InputGroup(name="ff_out", linears=("ff.net.2",)),
            InputGroup(name="modulation1", linears=("norm1.linear",), modulation=True),
            InputGroup(name="modulation2", linears=("norm2.linear",), modulation=True),
        )

    def advance(
        self, transformer: nn.Module, index: int, given: BlockInput, out: dict[str, Tensor]
    ) -> BlockInput:
        """Hand the streams on."""
        del transformer, index
        return given.with_streams(out)

    def tokens(self, transformer: nn.Module, latent: Tensor) -> Tensor:
        """Patchify ``[1, frames, channels, height, width]``."""
        config: Any = transformer.config
        p, t = config.patch_size, config.patch_size_t or 1
        _, frames, channels, height, width = latent.shape
        grid = latent.reshape(frames // t, t, channels, height // p, p, width // p, p)
        return grid.permute(0, 3, 5, 1, 2, 4, 6).reshape(-1, t * channels * p * p)

    def frames(self, transformer: nn.Module, value: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """Join the latent frames of a patch; frames already stand before channels."""
        del arguments
        config: Any = transformer.config
        batch, frames = value.shape[:2]
        return value.reshape(batch, frames // (config.patch_size_t or 1), -1)
