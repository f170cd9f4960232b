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

from harness.quant.capture import BlockInput, run_block

if TYPE_CHECKING:
    from harness.models.families.base import Family

TILE_ELEMENTS = 1 << 24
"""Most attention logits held at once."""


def attention_mass(query: Tensor, key: Tensor, scale: float | None = None) -> Tensor:
    """Sum the attention map over heads and queries, one tile of queries at a time.

    Args:
        query: ``[batch, heads, queries, head_dim]``.
        key: ``[batch, heads, keys, head_dim]``.
        scale: Factor on the logits, 1/sqrt(head_dim) if None.

    Returns:
        ``[batch, keys]``; sums to heads x queries.
    """
    batch, heads, queries, width = query.shape
    keys = key.shape[2]
    factor = width**-0.5 if scale is None else scale
    tile = max(1, TILE_ELEMENTS // (batch * heads * keys))
    mass = torch.zeros(batch, keys, dtype=torch.float32, device=query.device)
    transposed = key.float().transpose(-1, -2) * factor
    for start in range(0, queries, tile):
        logits = query[:, :, start : start + tile].float() @ transposed
        mass += logits.softmax(-1).sum((1, 2))
    return mass


_SDPA = ("query", "key", "value", "attn_mask")  # its first parameters, in order


class _SelfAttentionTap(TorchFunctionMode):
    """Sees the query and key of every self-attention that runs under it."""

    def __init__(self) -> None:
        super().__init__()
        self.masses: list[Tensor] = []

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            named = dict(zip(_SDPA, args, strict=False)) | kwargs
            query, key = named["query"], named["key"]
            if query.shape[-2] == key.shape[-2] and named.get("attn_mask") is None:
                self.masses.append(attention_mass(query, key, kwargs.get("scale")))
        return func(*args, **kwargs)


@torch.no_grad()
def block_attention_mass(block: nn.Module, family: Family, given: BlockInput) -> dict[str, Tensor]:
    """Attention mass of every token of a block's streams, from the full-precision block.

    Returns:
        ``[branches, tokens]`` for each stream of the self-attention.

    Raises:
        ValueError: The block runs no, or more than one, unmasked self-attention over all streams.
    """
    lengths = {name: given.streams[name].shape[1] for name in family.attention_order}
    with _SelfAttentionTap() as tap:
        run_block(block, family, given)
    fitting = [mass for mass in tap.masses if mass.shape[1] == sum(lengths.values())]
    if len(fitting) != 1:
        raise ValueError(f"expected one self-attention over {lengths}, saw {len(fitting)}")
    return dict(zip(lengths, fitting[0].split(list(lengths.values()), 1), strict=True))


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
