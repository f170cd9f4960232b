"""S2Q-VDiT: quantization with salient data and sparse token distillation.

Accurate Quantized Video Diffusion Transformer with Salient Data and Sparse Token Distillation,
arXiv 2508.04016, NeurIPS 2025. In five steps:
1. Hessian-aware salient data selection: of all (prompt, timestep) candidates keep the N that
   maximise C_diff * C_quant.
2. For each block, attention-guided sparse token distillation weighs the output error of a token by
   the attention it gets.
3. Channel scale, Kronecker transform and clipping thresholds are learned block by block against
   full precision.
4. Scales are folded into the producing layers, weights rounded by GPTQ in the learned basis.
5. Weights: symmetric per output channel; activations: symmetric, dynamic, per token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch.nn.utils.rnn import pad_sequence

from harness.api import (
    Deviation,
    Method,
    QuantContext,
    QuantReport,
    Reproduction,
    Share,
    Work,
    options,
)
from harness.quant import (
    BlockLearner,
    LearnedOptions,
    Norm,
    Selection,
    Walk,
    block_attention_mass,
    choose_samples,
    learning_work,
    pool_salience,
    short_training,
    shortage,
    token_weights,
)
from methods.s2q.figures import plot_chosen_timesteps, plot_token_mass

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.api import BitSpec
    from harness.quant import Sample, WalkedBlock


@options
class S2QOptions(LearnedOptions):
    """Knobs of S2Q-VDiT; those of the trainer are ``LearnedOptions``.

    Attributes:
        selection: ``sds``, or a rival of table 6: ``c_diff``, ``c_quant``, ``atop``, ``atfp``,
            ``rtfp``.
        norm: Norm of C_quant, ``fro`` or ``spectral``.
        token_weights: Attention-guided sparse token distillation; False weighs all tokens alike.
        lambda_min: Weight of the token that receives least attention.
        text_tokens: ``joint`` normalises attention mass over text and video together, ``video``
            within the video tokens, text weighing 1.
    """

    selection: Selection = "sds"
    norm: Norm = "fro"
    token_weights: bool = True
    lambda_min: Share = 0.5  # S2Q-VDiT, main experiments; lambda_max is 1 (eq. 11)
    text_tokens: Literal["joint", "video"] = "joint"


_DEVIATIONS = (
    Deviation(
        kind="reconstructed",
        what="candidates x_t are the latents that enter the denoiser, cut into its patches",
        why="the paper says 'denoised feature of timestep t'; the latent is the only such tensor "
        "named",
    ),
    Deviation(
        kind="reconstructed",
        what="||x^T x|| in C_quant is the Frobenius norm, the spectral norm is an option",
        why="the paper writes ||.||_2 of a matrix without saying which norm",
    ),
    Deviation(
        kind="reconstructed",
        what="N = 40 samples; 600 optimiser steps a block (15 epochs), batch of one sample",
        why="the paper says 40 in the tables and 30 in App. A, and gives no batch size",
    ),
    Deviation(
        kind="reconstructed",
        what="each sample is trained on one guidance branch, alternating; 'both' and 'cond' are "
        "options",
        why="the paper does not mention classifier-free guidance",
    ),
    Deviation(
        kind="reconstructed",
        what="text and video tokens share one min-max in eq. 11; 'video' is an option",
        why="the paper does not say how joint attention is treated",
    ),
    Deviation(
        kind="reconstructed",
        what="the rotation-based matrix is a Kronecker product of two invertible factors "
        "U diag(exp d) V^T, behind the channel scale, that starts as a random-sign Hadamard matrix "
        "(random orthogonal where a factor's size has none); clipping factors start at sigmoid(4), "
        "one pair a weight row and one pair an input",
        why="the paper cites FlatQuant for it and gives no shape, start or order",
    ),
    Deviation(
        kind="reconstructed",
        what="the channel scale is learned as its logarithm and starts at SmoothQuant's alpha = "
        "0.5 with the mean over samples of the maximum over tokens; AdamW without weight decay; "
        "learning rates fall to 1e-3 of their start",
        why="the paper gives learning rates and a cosine schedule only",
    ),
    Deviation(
        kind="reconstructed",
        what="block inputs come from the full-precision model; 'quantized' is an option",
        why="the paper does not say; released code of the same group caches full-precision inputs",
    ),
    Deviation(
        kind="reconstructed",
        what="transforms, scale and activation clips are shared by the linears that read one "
        "tensor; the block loss of eq. 10 covers text and video tokens",
        why="the paper does not say",
    ),
    Deviation(
        kind="reconstructed",
        what="GPTQ's Hessians are those of the transformed, unrounded inputs inside the "
        "full-precision block; damping 0.01, no activation order",
        why="the paper names GPTQ and gives no setting",
    ),
    Deviation(
        kind="reconstructed",
        what="every linear inside the blocks is quantized; modulation linears keep 16-bit "
        "activations",
        why="the storage the paper prints only comes out so",
    ),
    Deviation(
        kind="reconstructed",
        what="atfp takes all timesteps of five prompts thinned evenly to N",
        why="table 6 does not say whether its rows share the sample count; all rows here do where "
        "the pool allows, and all take the same number of optimiser steps",
    ),
)


class S2Q(Method):
    """Salient data selection, sparse token distillation, learned transforms, GPTQ."""

    name = "s2q"
    version = 2
    Options = S2QOptions
    needs_calibration = True
    quick: ClassVar = {"epochs": 3}  # 120 optimiser steps a block
    quick_s = 110.0
    reproduction = Reproduction(
        title="S2Q-VDiT: Accurate Quantized Video Diffusion Transformer with Salient Data and "
        "Sparse Token Distillation",
        source="arXiv 2508.04016 (NeurIPS 2025)",
        code="none released as of 2026-09 (the repository holds a README)",
        rows=(
            (
                "CogVideoX-2B W4A6, table 1: imaging 55.49, aesthetic 53.74, scene 32.70 "
                "(fp 58.69, 55.25, 33.79)"
            ),
            "CogVideoX-2B W4A4, table 2: imaging 53.71, aesthetic 52.31, scene 34.23",
        ),
        deviations=_DEVIATIONS,
    )

    def work(self, options: S2QOptions, bits: BitSpec) -> Work:
        """The trainer's work, and attention masses."""
        return learning_work(options, bits, passes=int(options.token_weights))

    def quantize_(self, transformer: nn.Module, ctx: QuantContext) -> QuantReport:
        """Quantize block by block."""
        return _Run(transformer, ctx).quantize_()


class _Run:
    """One quantization: what the steps of the paper share."""

    def __init__(self, transformer: nn.Module, ctx: QuantContext) -> None:
        self.transformer = transformer
        self.ctx = ctx
        self.options: S2QOptions = ctx.options
        self.family = ctx.family
        self.learner = BlockLearner(ctx)
        self.curves = self.learner.curves
        self.masses: list[Tensor] = []

    def quantize_(self) -> QuantReport:
        """Run the five steps."""
        options, learner = self.options, self.learner
        chosen = self.hessian_aware_salient_data_selection()
        state = {"curves": self.curves, "masses": self.masses}
        walk = Walk(self.transformer, self.ctx, chosen, verb="learning", state=state)
        for walked in walk:
            learner.quantize_block_(walked, self.attention_guided_token_weights(walked))
        self.leave_figures()
        return walk.report(
            passes=learner.passes + options.token_weights,
            steps=learner.steps_taken,
            notes=(*shortage(chosen, options.samples), *short_training(options)),
            curves=self.curves,
        )

    def hessian_aware_salient_data_selection(self) -> list[Sample]:
        """Choose the calibration samples (eq. 3-8; rivals of table 6)."""
        pool, options = self.ctx.calibration, self.options
        with self.ctx.part("selection"):
            salience = pool_salience(pool, self.family, self.transformer, options.norm)
            chosen = choose_samples(
                options.selection, options.samples, pool, salience, self.ctx.generator(salt=1)
            )
        self.curves["chosen_steps"] = [float(s.step) for s in chosen]
        self.curves["chosen_prompts"] = [float(s.prompt) for s in chosen]
        if self.ctx.figures is not None:
            plot_chosen_timesteps(
                self.ctx.figures / "chosen_timesteps.png",
                chosen,
                salience.product,
                pool.timesteps,
                f"C_diff x C_quant of every candidate; {options.selection} keeps {len(chosen)}",
            )
        return chosen

    def attention_guided_token_weights(self, walked: WalkedBlock) -> list[dict[str, Tensor]] | None:
        """Token weights lambda_j of eq. 11 for every sample, from the full-precision block."""
        if not self.options.token_weights:
            return None
        only = self.family.video_stream if self.options.text_tokens == "video" else None
        with self.ctx.part("token weights"):
            masses = [block_attention_mass(walked.block, self.family, x) for x in walked.inputs]
        joint = [torch.cat(list(m.values()), 1).mean(0) for m in masses]
        # samples differ in text only where what nothing sees, of mass 0, was left out of them
        self.masses.append(pad_sequence(joint, batch_first=True).mean(0).cpu())
        return [token_weights(m, lowest=self.options.lambda_min, only=only) for m in masses]

    def leave_figures(self) -> None:
        """Keep the token-mass curve as data and as a plot."""
        for i, mass in enumerate(self.masses):
            self.curves[f"token_mass_block_{i}"] = mass.sort(descending=True).values.tolist()
        if self.ctx.figures is not None and self.masses:
            names = [f"block {i}" for i in range(len(self.masses))]
            plot_token_mass(self.ctx.figures / "token_mass.png", self.masses, names)
