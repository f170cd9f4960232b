"""What training one block takes: bytes for each token, bytes whatever the tokens, and time.

A block of real width with random weights is trained for a step at two numbers of tokens; the slope
is what a token costs, what is left is weights, their rounding and optimizer states.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from harness.bits import BitSpec
from harness.measure.traced import PeakTensors
from harness.method import QuantContext
from harness.models.block_input import BlockInput, Sample
from harness.models.families import family_by_name
from harness.models.families.base import target_groups
from harness.quant.calibration.capture import run_block
from harness.quant.calibration.walk import WalkedBlock
from harness.quant.learning.block_trainer import BlockTask
from harness.quant.learning.learned_blocks import BlockLearner, LearnedOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from harness.models.families.base import Family

TEXT_TOKENS = 64
"""Text tokens of the synthetic input; the rest are video tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingStep:
    """One training step of a block.

    Attributes:
        tokens: Text and video tokens of the sample.
        peak_bytes: Most bytes of tensors alive at once, beyond what was alive before.
        seconds: Wall time of all steps, statistics of the inputs counted in.
    """

    tokens: int
    peak_bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingMemory:
    """What training a block takes.

    Attributes:
        width: Channels of a token.
        bytes_a_token: Slope of the peak over the tokens.
        fixed_bytes: Peak at no tokens: trainable copy, rounded weights, gradients, optimizer.
        steps: The measurements.
    """

    width: int
    bytes_a_token: float
    fixed_bytes: float
    steps: tuple[TrainingStep, ...]


def cogvideox_2b_block() -> nn.Module:
    """A block with the sizes of CogVideoX-2B and random weights.

    30 heads of 64 channels, 512 channels of the time embedding: the defaults of diffusers'
    CogVideoXTransformer3DModel, which are this model's.
    """
    from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock

    block: nn.Module = CogVideoXBlock(
        dim=1920, num_attention_heads=30, attention_head_dim=64, time_embed_dim=512,
        attention_bias=True,
    )  # fmt: skip
    return block.eval().requires_grad_(False)


def cogvideox_input(block: nn.Module, tokens: int, *, seed: int = 0) -> BlockInput:
    """Normal noise in the place of what a CogVideoX block reads.

    Args:
        block: A ``CogVideoXBlock``.
        tokens: Text and video tokens.
        seed: Of the noise.
    """
    made: Any = block
    generator = torch.Generator().manual_seed(seed)
    width, embedded = made.norm1.norm.normalized_shape[0], made.norm1.linear.in_features
    text = min(TEXT_TOKENS, tokens // 2)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return BlockInput(
        sample=Sample(0, 0),
        streams={
            "hidden_states": noise(1, tokens - text, width),
            "encoder_hidden_states": noise(1, text, width),
        },
        fixed={"temb": noise(1, embedded)},
    )


def training_step(
    block: nn.Module,
    family: Family,
    given: BlockInput,
    *,
    bits: str = "w4a4",
    steps: int = 1,
    options: Mapping[str, Any] | None = None,
) -> TrainingStep:
    """Train a block against itself and measure.

    Args:
        block: Full-precision block.
        family: Its facts.
        given: The sample it is trained on.
        bits: Widths.
        steps: Optimizer steps.
        options: Of the trainer, beside its defaults.
    """
    device = next(block.parameters()).device
    chosen = LearnedOptions(**{"samples": 1, "epochs": steps, **(options or {})})
    ctx = QuantContext(bits=BitSpec.parse(bits), options=chosen, family=family, device=device)
    with torch.no_grad():
        target = given.with_streams(run_block(block, family, given))
    nobody: Any = SimpleNamespace(say=lambda blocks, text="": None)  # hears the progress
    walked = WalkedBlock(
        index=0, name="block", block=block, groups=target_groups(family, block),
        inputs=[given], targets=[target], given=[given], walk=nobody,
    )  # fmt: skip
    learner = BlockLearner(ctx)
    started = time.perf_counter()
    with PeakTensors() as seen:
        learner.learn_block(walked, BlockTask(inputs=[given], targets=[target]))
    seconds = time.perf_counter() - started
    tokens = sum(value.shape[1] for value in given.streams.values())
    return TrainingStep(tokens=tokens, peak_bytes=seen.peak, seconds=seconds)


def training_memory(
    block: nn.Module | None = None,
    *,
    tokens: tuple[int, int] = (1024, 2048),
    bits: str = "w4a4",
    steps: int = 1,
    options: Mapping[str, Any] | None = None,
) -> TrainingMemory:
    """Measure the training of a CogVideoX block.

    Args:
        block: The block; None takes one of CogVideoX-2B's sizes.
        tokens: Two lengths of the sample, the shorter first.
        bits: Widths.
        steps: Optimizer steps.
        options: Of the trainer, beside its defaults.
    """
    block = cogvideox_2b_block() if block is None else block
    family = family_by_name("cogvideox")
    found = tuple(
        training_step(
            block, family, cogvideox_input(block, n), bits=bits, steps=steps, options=options
        )
        for n in tokens
    )
    first, last = found
    slope = (last.peak_bytes - first.peak_bytes) / (last.tokens - first.tokens)
    made: Any = block
    return TrainingMemory(
        width=made.norm1.norm.normalized_shape[0],
        bytes_a_token=slope,
        fixed_bytes=first.peak_bytes - slope * first.tokens,
        steps=found,
    )
