"""FlatQuant: learned affine transforms that flatten weights and activations.

FlatQuant: Flatness Matters for LLM Quantization, arXiv 2410.09426, ICML 2025, as the control of
S2Q-VDiT: the same block trainer, the same number of samples and of optimiser steps, but samples
drawn at random and every token weighing the same. The difference of the two rows is what S2Q-VDiT
adds. In four steps:
1. Draw (prompt, timestep) samples uniformly.
2. Channel scale, Kronecker transform and clipping thresholds are learned block by block against
   full precision.
3. Scales are folded into the producing layers, weights rounded in the learned basis.
4. Weights: symmetric per output channel; activations: symmetric, dynamic, per token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from harness.api import (
    BitSpec,
    Deviation,
    QuantContext,
    QuantReport,
    Reproduction,
    Unsupported,
)
from harness.quant.calibration.salience import RULES, choose_samples, pool_salience, shortage
from harness.quant.calibration.walk import Walk
from harness.quant.learning.block_trainer import BlockTask
from harness.quant.learning.learned_blocks import (
    PAPER_EPOCHS,
    BlockLearner,
    Recipe,
    check_recipe,
    short_training,
)
from harness.quant.options import check_choice

if TYPE_CHECKING:
    from torch import nn

    from harness.models.block_input import Sample
    from harness.models.trajectories import CalibrationPool


@dataclass(frozen=True, kw_only=True, slots=True)
class FlatQuantOptions:
    """Knobs of FlatQuant; names and defaults are those of ``s2q`` wherever both have them.

    Attributes:
        selection: ``random`` (uniform over prompts and timesteps of the pool), or a rule of
            S2Q-VDiT table 6.
        samples: (prompt, timestep) samples that are kept; the paper takes 128 sentences.
        scale: Learn a channel scale.
        rotation: Start of the Kronecker transform: ``hadamard``, ``random``, ``identity``, or
            ``none`` for no transform.
        learn: Train at all; False keeps scale and rotation at their start and clips nothing.
        epochs: Passes over the samples for each block.
        lr_transform: Learning rate of scale and transform.
        lr_clip: Learning rate of the clipping thresholds.
        smoothing: Exponent of the initial scale, SmoothQuant's alpha; 0.3 in the released code.
        branches: Guidance branches a sample is trained on: ``both``, ``alternate`` or ``cond``.
        inputs: Block inputs during training: ``fp`` from the full-precision model, ``quantized``
            from the quantized blocks before it (targets stay full precision).
        rounding: ``gptq`` or ``rtn``.
        modulation: ``w`` quantizes the weights of modulation linears, ``fp`` leaves them out.
    """

    selection: str = "random"
    samples: int = 40
    scale: bool = True
    rotation: str = "hadamard"
    learn: bool = True
    epochs: int = PAPER_EPOCHS
    lr_transform: float = 5e-3  # FlatQuant's released scripts, --flat_lr
    lr_clip: float = 5e-2  # FlatQuant's released code, ten times --flat_lr
    smoothing: float = 0.5
    branches: str = "alternate"
    inputs: str = "fp"
    rounding: str = "gptq"
    modulation: str = "w"

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            UsageError: A value is unknown or out of range.
        """
        check_recipe(self)
        check_choice("selection", self.selection, ("random", *RULES))


_DEVIATIONS = (
    Deviation(
        kind="adaptation",
        what="samples are (prompt, timestep) pairs of a video DiT; no key/value cache is quantized",
        why="the paper quantizes language models",
    ),
    Deviation(
        kind="deviation",
        what="40 samples, batches of one, shuffled: 600 optimiser steps a block; the paper takes "
        "128 sentences in batches of 4 (480 steps), which its code visits in a fixed order",
        why="data and steps are those of S2Q-VDiT, so that only the choice of data and the token "
        "weights differ",
    ),
    Deviation(
        kind="deviation",
        what="the channel scale starts at SmoothQuant's alpha = 0.5 and is learned as its "
        "logarithm; the released code starts at 0.3 and learns the scale itself",
        why="the start of S2Q-VDiT's trainer here; `smoothing` = 0.3 is an option",
    ),
    Deviation(
        kind="deviation",
        what="the Kronecker factors U diag(exp d) V^T start as random-sign Hadamard matrices, the "
        "released code's as products of random orthogonal ones",
        why="the start of S2Q-VDiT's trainer here; `rotation` = 'random' is an option",
    ),
    Deviation(
        kind="deviation",
        what="weights are rounded by GPTQ in the learned basis; the released code rounds to "
        "nearest unless --gptq is given",
        why="S2Q-VDiT rounds by GPTQ; `rounding` = 'rtn' is an option",
    ),
    Deviation(
        kind="deviation",
        what="AdamW without weight decay, the loss as it is; the released code keeps AdamW's "
        "default decay of 0.01, divides every loss by its own value and trains in mixed precision",
        why="the settings of S2Q-VDiT's trainer here",
    ),
    Deviation(
        kind="deviation",
        what="clipping rates fall to 1e-3 of their start; in the released code every rate falls to "
        "1e-3 of that of the transforms",
        why="the schedule of S2Q-VDiT's trainer here",
    ),
    Deviation(
        kind="adaptation",
        what="every linear inside the blocks is quantized; modulation linears have no transform "
        "and keep 16-bit activations",
        why="the same target set for every method",
    ),
)


class FlatQuant:
    """Learned transforms and GPTQ on random data: S2Q-VDiT without what it adds."""

    name = "flatquant"
    version = 1
    Options = FlatQuantOptions
    needs_calibration = True
    unquantized = False
    reproduction = Reproduction(
        title="FlatQuant: Flatness Matters for LLM Quantization",
        source="arXiv 2410.09426 (ICML 2025)",
        code="https://github.com/ruikangliu/FlatQuant (language models)",
        rows=(
            (
                "CogVideoX-2B W4A4, S2Q-VDiT table 6, its trainer on random timesteps of five "
                "prompts: imaging 50.66, aesthetic 50.33, scene 30.47 (on its own selection "
                "52.95, 51.58, 32.75)"
            ),
        ),
        deviations=_DEVIATIONS,
    )

    def supports(self, family: str, bits: BitSpec) -> Unsupported | None:
        """Every family and width."""
        return None

    def quantize_(self, transformer: nn.Module, ctx: QuantContext) -> QuantReport:
        """Learn and round block by block."""
        options: FlatQuantOptions = ctx.options
        chosen = choose(transformer, ctx)
        learner = BlockLearner(ctx, Recipe.of(options))
        walk = Walk(
            transformer, ctx, chosen,
            branches=options.branches, inputs=options.inputs, verb="learning",
        )  # fmt: skip
        for step in walk:
            task = BlockTask(inputs=step.given, targets=step.targets)
            learner.quantize_block_(step.name, step.block, task, step.index)
        return walk.report(
            passes=learner.passes,
            steps=learner.steps_taken,
            errors=learner.errors.items(),
            notes=(*shortage(chosen, options.samples), *short_training(options)),
            curves={
                **learner.curves,
                "chosen_steps": [float(s.step) for s in chosen],
                "chosen_prompts": [float(s.prompt) for s in chosen],
            },
        )


def choose(transformer: nn.Module, ctx: QuantContext) -> list[Sample]:
    """Choose the calibration samples: at random, or by a rule of S2Q-VDiT."""
    pool, options = ctx.calibration, ctx.options
    generator = ctx.generator(salt=1)
    if options.selection == "random":
        return random_samples(pool, options.samples, generator)
    salience = pool_salience(pool, ctx.family, transformer)
    return choose_samples(options.selection, options.samples, pool, salience, generator)


def random_samples(pool: CalibrationPool, count: int, generator: torch.Generator) -> list[Sample]:
    """Draw samples uniformly over all prompts and timesteps, without repetition, in pool order."""
    candidates = list(pool.samples())
    drawn = torch.randperm(len(candidates), generator=generator)[:count]
    return [candidates[i] for i in drawn.sort().values.tolist()]
