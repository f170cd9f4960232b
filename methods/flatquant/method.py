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

from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from harness.api import (
    SAME_TARGETS,
    Deviation,
    Method,
    QuantContext,
    QuantReport,
    Reproduction,
    Work,
    options,
)
from harness.quant import (
    BlockLearner,
    LearnedOptions,
    Sample,
    Selection,
    Walk,
    choose_samples,
    learning_work,
    pool_salience,
    short_training,
    shortage,
)

if TYPE_CHECKING:
    from torch import nn

    from harness.api import BitSpec
    from harness.quant import CalibrationPool


@options
class FlatQuantOptions(LearnedOptions):
    """Knobs of FlatQuant: those of the trainer, ``LearnedOptions``, and the choice of data.

    Attributes:
        selection: ``random`` (uniform over prompts and timesteps of the pool), or a rule of
            S2Q-VDiT table 6.
    """

    selection: Literal["random", Selection] = "random"


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
    SAME_TARGETS,
)


class FlatQuant(Method):
    """Learned transforms and GPTQ on random data: S2Q-VDiT without what it adds."""

    name = "flatquant"
    Options = FlatQuantOptions
    needs_calibration = True
    quick: ClassVar = {"epochs": 3}  # 120 optimiser steps a block
    quick_s = 100.0
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

    def work(self, options: FlatQuantOptions, bits: BitSpec) -> Work:
        """The trainer's work."""
        return learning_work(options, bits)

    def quantize_(self, transformer: nn.Module, ctx: QuantContext) -> QuantReport:
        """Learn and round block by block."""
        options: FlatQuantOptions = ctx.options
        with ctx.part("selection"):
            chosen = choose(transformer, ctx)
        learner = BlockLearner(ctx)
        walk = Walk(transformer, ctx, chosen, verb="learning", state={"curves": learner.curves})
        for walked in walk:
            learner.quantize_block_(walked)
        return walk.report(
            passes=learner.passes,
            steps=learner.steps_taken,
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
