"""How much each layer matters, in ViDiT-Q's mixed precision (arXiv 2406.02540).

Layers fall into groups by what they influence: text (cross-attention), quality (self-attention and
feed-forward), motion (temporal attention). Each is quantized alone, in each quarter of the
trajectory; the denoiser's output gives its error and, by the metric of its group, its damage.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import torch

from harness.quant import Sample, linear_at, replace_module_
from methods.viditq.metrics import output_error
from methods.viditq.quarters import QUARTERS, quarter_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor, nn

    from harness.api import QuantContext
    from harness.quant import Family, InputGroup, Role
    from methods.viditq.metrics import Metric


CROSS_ATTENTION: tuple[Role, ...] = (
    "cross_attention_query",
    "cross_attention_text",
    "cross_attention_image",
    "cross_attention_out",
)
FEED_FORWARD_ALONE: tuple[Role, ...] = ("feed_forward_in", "feed_forward_out")


def is_feed_forward(group: InputGroup) -> bool:
    """Whether the feed-forward alone reads an input.

    An input that an attention shares (HunyuanVideo's single blocks) is the attention's: it takes
    one scale and one rotation for both.
    """
    return group.role in FEED_FORWARD_ALONE


def is_cross_attention(group: InputGroup) -> bool:
    """Whether an input belongs to an attention from the video to what conditions it."""
    return group.role in CROSS_ATTENTION


def layer_group(family: Family, group: InputGroup) -> str:
    """Name what a linear influences: ``text``, ``quality`` or ``motion``.

    Where text and video attend to each other jointly, that attention is where the text enters, and
    counts as ``text``.
    """
    if is_feed_forward(group):
        return "quality"
    if group.temporal:
        return "motion"
    joint = len(family.attention_order) > 1
    return "text" if joint or is_cross_attention(group) else "quality"


class Layer(NamedTuple):
    """What is quantized alone: the attention of one kind, or the feed-forward, of one block.

    Attributes:
        name: Block and kind, ``transformer_blocks.0 ff``.
        group: ``text``, ``quality`` or ``motion``.
        linears: Qualified names.
        weights: Number of weights in them.
    """

    name: str
    group: str
    linears: tuple[str, ...]
    weights: int


def layers_of(family: Family, transformer: nn.Module) -> list[Layer]:
    """Every attention and feed-forward of the denoiser; modulation linears belong to none."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for name, block in family.blocks(transformer):
        for group in family.groups(block):
            if group.modulation:
                continue
            kind = "ff" if is_feed_forward(group) else "attn"
            if is_cross_attention(group):
                kind = "cross"
            key = (name, kind, layer_group(family, group))
            found.setdefault(key, []).extend(f"{name}.{linear}" for linear in group.linears)
    return [
        Layer(
            f"{name} {kind}",
            group,
            tuple(linears),
            sum(linear_at(transformer, linear).weight.numel() for linear in linears),
        )
        for (name, kind, group), linears in found.items()
    ]


def probe_samples(prompts: int, steps: int, count: int) -> list[list[Sample]]:
    """For each quarter ``count`` samples: steps spread over the quarter, prompts in turn."""
    chosen = []
    for quarter in range(QUARTERS):
        own = [step for step in range(steps) if quarter_of(step, steps) == quarter]
        picks = [own[(2 * i + 1) * len(own) // (2 * count)] for i in range(count)]
        chosen.append([Sample(i % prompts, step) for i, step in enumerate(picks)])
    return chosen


class Measured(NamedTuple):
    """Error and damage of every (layer, quarter), and the denoiser evaluations that it took."""

    error: list[list[float]]
    damage: list[list[float]]
    evaluations: int


@torch.no_grad()
def measure_sensitivity(
    transformer: nn.Module,
    ctx: QuantContext,
    layers: Sequence[Layer],
    metrics: Mapping[str, Metric],
    samples: Sequence[Sequence[Sample]],
    quantized: Callable[[str], nn.Module],
) -> Measured:
    """Quantize one layer at a time and compare the denoiser's output with full precision.

    Args:
        transformer: Full precision; it is given back as it was.
        ctx: Context of the run.
        layers: What is quantized alone.
        metrics: Metric by layer group.
        samples: Samples of each quarter.
        quantized: The quantized form of a linear, by qualified name.
    """
    flat = [(q, sample) for q, own in enumerate(samples) for sample in own]
    exact = [_output(transformer, ctx, sample) for _, sample in flat]

    def alone(layer: Layer) -> tuple[list[float], list[float]]:
        error, damage = [0.0] * QUARTERS, [0.0] * QUARTERS
        originals = {name: linear_at(transformer, name) for name in layer.linears}
        for name in originals:
            replace_module_(transformer, name, quantized(name))
        for (quarter, sample), reference in zip(flat, exact, strict=True):
            out = _output(transformer, ctx, sample)
            share = 1 / len(samples[quarter])
            error[quarter] += share * output_error(reference, out)
            damage[quarter] += share * metrics[layer.group](reference, out)
        for name, linear in originals.items():
            replace_module_(transformer, name, linear)
        return error, damage

    found = []
    for i, layer in enumerate(layers):
        ctx.progress(i / len(layers), f"sensitivity of {layer.name}")
        found.append(ctx.keep(f"sensitivity {i}", functools.partial(alone, layer)))
    error, damage = [e for e, _ in found], [d for _, d in found]
    return Measured(error, damage, (len(layers) + 1) * len(flat))


def _output(transformer: nn.Module, ctx: QuantContext, sample: Sample) -> Tensor:
    """Denoiser output ``[branches, frames, features]`` at a recorded sample, float32."""
    arguments = ctx.calibration.call(sample, ctx.device).arguments
    out: Tensor = transformer(**arguments)[0]
    return ctx.family.frames(transformer, out.float(), arguments)
