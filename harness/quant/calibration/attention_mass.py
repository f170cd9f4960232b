"""How much attention each token receives, without ever holding the n x n map.

S2Q-VDiT (arXiv 2508.04016), sec. 3.3: S_j = sum_h sum_i A[h, i, j], the attention mass of token j,
and the token weights of eq. 11.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from harness.quant.calibration.capture import run_block

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.utils.hooks import RemovableHandle

    from harness.models.block_input import BlockInput
    from harness.models.families.base import Family

TILE_ELEMENTS = 1 << 24
"""Most attention logits held at once."""


def attention_mass(
    query: Tensor, key: Tensor, scale: float | None = None, mask: Tensor | None = None
) -> Tensor:
    """Sum the attention map over heads and queries, one tile of queries at a time.

    Args:
        query: ``[batch, heads, queries, head_dim]``.
        key: ``[batch, heads, keys, head_dim]``.
        scale: Factor on the logits, 1/sqrt(head_dim) if None.
        mask: Which keys a query sees, bool ``[batch, 1, 1 or queries, keys]``; the others get
            nothing of it. A query that sees none gives nothing.

    Returns:
        ``[batch, keys]``; sums to heads x queries that see anything.
    """
    batch, heads, queries, width = query.shape
    keys = key.shape[2]
    factor = width**-0.5 if scale is None else scale
    tile = max(1, TILE_ELEMENTS // (batch * heads * keys))
    mass = torch.zeros(batch, keys, dtype=torch.float32, device=query.device)
    transposed = key.float().transpose(-1, -2) * factor
    for start in range(0, queries, tile):
        logits = query[:, :, start : start + tile].float() @ transposed
        if mask is None:
            weights = logits.softmax(-1)
        else:
            seen = mask if mask.shape[-2] == 1 else mask[:, :, start : start + tile]
            weights = logits.masked_fill(~seen, -torch.inf).softmax(-1)
            weights = weights.masked_fill(~seen.any(-1, keepdim=True), 0.0)
        mass += weights.sum((1, 2))
    return mass


_SDPA = ("query", "key", "value", "attn_mask")  # its first parameters, in order


class _AttentionTap(TorchFunctionMode):
    """Sees query, key and mask of every attention that runs under it while it is open."""

    def __init__(self) -> None:
        super().__init__()
        self.open = False
        self.masses: list[Tensor] = []

    def within(self, attention: nn.Module) -> list[RemovableHandle]:
        """Open it only while a module runs."""

        def switch(to: bool) -> Callable[..., None]:
            def hook(*_: Any) -> None:
                self.open = to

            return hook

        return [
            attention.register_forward_pre_hook(switch(to=True)),
            attention.register_forward_hook(switch(to=False)),
        ]

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self.open and func is functional.scaled_dot_product_attention:
            named = dict(zip(_SDPA, args, strict=False)) | kwargs
            mask = _seen(named.get("attn_mask"))
            self.masses.append(
                attention_mass(named["query"], named["key"], kwargs.get("scale"), mask)
            )
        return func(*args, **kwargs)


def _seen(mask: Tensor | None) -> Tensor | None:
    """The mask where it only hides keys, as padding does.

    Raises:
        ValueError: It is additive.
    """
    if mask is None or mask.dtype == torch.bool:
        return mask
    raise ValueError(f"a mask of {mask.dtype} {list(mask.shape)} is not a padding mask")


@torch.no_grad()
def block_attention_mass(block: nn.Module, family: Family, given: BlockInput) -> dict[str, Tensor]:
    """Attention mass of every token of a block's streams, from the full-precision block.

    Taken from the attention among the block's tokens: over text and video where they attend
    jointly, over the video alone where the text has a cross-attention of its own (text tokens then
    are no outputs of a block and carry no loss).

    Returns:
        ``[batch, tokens]`` for each stream of the self-attention.

    Raises:
        ValueError: The block runs no, or more than one, self-attention over all streams.
    """
    lengths = {name: given.streams[name].shape[1] for name in family.attention_order}
    tap = _AttentionTap()
    handles = tap.within(block.get_submodule(family.self_attention))
    try:
        with tap:
            run_block(block, family, given)
    finally:
        for handle in handles:
            handle.remove()
    shapes = [mass.shape[1] for mass in tap.masses]
    if shapes != [sum(lengths.values())]:
        raise ValueError(f"expected one self-attention over {lengths}, saw {shapes}")
    return dict(zip(lengths, tap.masses[0].split(list(lengths.values()), 1), strict=True))


def token_weights(
    masses: dict[str, Tensor], *, lowest: float, highest: float = 1.0, only: str | None = None
) -> dict[str, Tensor]:
    """Turn masses into loss weights (eq. 11): min-max over the tokens, into [lowest, highest].

    Args:
        masses: ``[branches, tokens]`` by stream.
        lowest: lambda_min.
        highest: lambda_max.
        only: Normalise within this stream and give the others weight ``highest``; None takes all
            streams together.

    Returns:
        Weights in the shape of the masses.
    """
    names = [only] if only else list(masses)
    joint = torch.cat([masses[name] for name in names], 1)
    low, high = joint.amin(1, keepdim=True), joint.amax(1, keepdim=True)
    spread = (high - low).clamp_min(torch.finfo(joint.dtype).tiny)
    return {
        name: (mass - low) / spread * (highest - lowest) + lowest
        if name in names
        else torch.full_like(mass, highest)
        for name, mass in masses.items()
    }
