"""A miniature handed to a library back end."""

from __future__ import annotations

import copy
import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from harness.bits import BitSpec
from harness.method import QuantContext, resolve_options
from harness.models.families import family_by_name
from harness.models.families.base import InputGroup
from harness.quant.layers.library import LibraryLinear

if TYPE_CHECKING:
    from torch import Tensor

    from harness.method import Method, QuantReport

FAMILY = "cogvideox"


@functools.cache
def pristine(dtype: torch.dtype, width: int) -> nn.Module:
    """Two CogVideoX blocks, every input a multiple of ``width`` channels."""
    from diffusers import CogVideoXTransformer3DModel

    torch.manual_seed(0)
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=width // 2, in_channels=4, out_channels=4,
        time_embed_dim=width, text_embed_dim=16, num_layers=2, sample_width=8, sample_height=8,
        sample_frames=9, patch_size=2, temporal_compression_ratio=4, max_text_seq_length=8,
    )  # fmt: skip
    with torch.no_grad():
        for value in transformer.parameters():
            if value.ndim == 2:  # fresh modulation and output layers are nearly zero
                value.normal_(0.0, value.shape[1] ** -0.5)
            value.data = value.data.to(dtype)
    ready: nn.Module = transformer.eval().requires_grad_(False)
    return ready


def miniature(dtype: torch.dtype = torch.float32, width: int = 32) -> nn.Module:
    return copy.deepcopy(pristine(dtype, width))


def converted(
    method: Method, bits: str, dtype: torch.dtype = torch.float32, width: int = 32, **options: Any
) -> tuple[nn.Module, QuantReport]:
    transformer = miniature(dtype, width)
    return transformer, method.quantize_(transformer, context(method, bits, **options))


def context(method: Method, bits: str, **options: Any) -> QuantContext:
    return QuantContext(
        bits=BitSpec.parse(bits), options=resolve_options(method, options),
        family=family_by_name(FAMILY), device=torch.device("cpu"), data_free=True,
    )  # fmt: skip


def one_layer(method: Method, bits: str, linear: nn.Linear) -> LibraryLinear:
    """What a method makes of one linear."""

    class OneLinear:
        name = "one linear"

        def blocks(self, transformer: nn.Module) -> list[tuple[str, nn.Module]]:
            return [("0", transformer.get_submodule("0"))]

        def groups(self, block: nn.Module) -> tuple[InputGroup, ...]:
            return (InputGroup(name="any", role="feed_forward_in", linears=("linear",)),)

    model = nn.ModuleList([nn.ModuleDict({"linear": linear.requires_grad_(False)})])
    ctx = context(method, bits)
    ctx.family = OneLinear()
    method.quantize_(model, ctx)
    layer = model.get_submodule("0.linear")
    assert isinstance(layer, LibraryLinear)
    return layer


def output(transformer: nn.Module) -> Tensor:
    dtype = next(transformer.parameters()).dtype
    noise = torch.Generator().manual_seed(5)
    arguments = {
        "hidden_states": torch.randn(1, 3, 4, 8, 8, generator=noise).to(dtype),
        "encoder_hidden_states": torch.randn(1, 8, 16, generator=noise).to(dtype),
        "timestep": torch.tensor([400]),
    }
    with torch.no_grad():
        out: Tensor = transformer(**arguments, return_dict=False)[0]
    return out


def error(transformer: nn.Module, width: int = 32) -> float:
    """Relative squared error of the output against the full-precision miniature in float32."""
    exact = output(miniature(width=width)).double()
    return float((output(transformer).double() - exact).square().sum() / exact.square().sum())
