"""PTQ4DiT: Post-training Quantization for Diffusion Transformers.

arXiv 2405.16005, NeurIPS 2024. In five steps:
1. Channel-wise salience balancing (CSB): scale every channel so that its activation and weight
   maxima are equal.
2. Spearman's-rho-guided salience calibration (SSC): the activation maxima are a mean over
   timesteps, weighted towards timesteps whose salient channels do not coincide with the weight's.
3. Offline re-parameterisation: the balancing is folded into the modulation and value projections.
4. Weights: asymmetric per output channel; activations: asymmetric, static, per tensor; ranges by
   percentile search.
5. Block reconstruction: AdaRound and learned activation steps against the full-precision block,
   inputs quantized.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field
from scipy.stats import spearmanr

from harness.api import (
    Amount,
    Method,
    QuantContext,
    QuantReport,
    Share,
    SpacedOptions,
    Whole,
    Work,
    options,
)
from harness.quant import (
    Selection,
    Walk,
    apply_scales_,
    block_attention_mass,
    channel_absmax_by_step,
    choose_samples,
    linear_at,
    pool_salience,
    shortage,
    target_groups,
    token_weights,
    uniform_samples,
    weight_absmax,
)
from methods.ptq4dit.paper import REPRODUCTION
from methods.ptq4dit.reconstruction import BlockReconstruction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from harness.api import BitSpec
    from harness.quant import BlockInput, InputGroup, Sample, WalkedBlock

Exponent = Annotated[float, Field(ge=1)]  # below 1 the gradient at h = 1/2 is infinite


@options
class PTQ4DiTOptions(SpacedOptions):
    """Knobs of PTQ4DiT; the paper takes 32 samples for each of 25 or 10 timesteps.

    Attributes:
        selection: ``uniform`` (equally spaced timesteps, the paper), or a rule of S2Q-VDiT table 6.
        balance: Salience balancing; False quantizes the plain weights.
        calibrate: SSC; False takes the maxima at the middle timestep, the paper's ablation "+CSB".
        balance_ff_out: Balance the second feed-forward linear too, online; the paper leaves it out.
        iterations: AdaRound steps for each block; 0 rounds to nearest.
        lr_rounding: Adam learning rate of the rounding variables, constant.
        lr_step: Adam learning rate of the activation steps, annealed to 0.
        round_weight: Weight of the rounding regulariser.
        beta_start: First exponent of the regulariser.
        beta_stop: Last exponent.
        warmup: Share of the iterations without regulariser.
        token_weights: Weigh the loss by attention mass as S2Q-VDiT does (its authors attach it to
            PTQ4DiT too).
        lambda_min: Smallest token weight then.
    """

    selection: Literal["uniform", Selection] = "uniform"
    balance: bool = True
    calibrate: bool = True
    balance_ff_out: bool = False
    iterations: Whole = 600
    lr_rounding: Amount = 1e-2
    lr_step: Amount = 4e-5  # released code: the effective value (its flag is not forwarded)
    round_weight: Amount = 0.01  # released code, as Q-Diffusion
    beta_start: Exponent = 20.0  # released code, as Q-Diffusion
    beta_stop: Exponent = 2.0  # released code, as Q-Diffusion
    warmup: Share = 0.2  # released code, as Q-Diffusion
    token_weights: bool = False
    lambda_min: Share = 0.5


class PTQ4DiT(Method):
    """Salience balancing, Spearman-guided calibration, block reconstruction."""

    name = "ptq4dit"
    version = 2
    Options = PTQ4DiTOptions
    needs_calibration = True
    quick: ClassVar = {"iterations": 120}
    quick_s = 110.0
    reproduction = REPRODUCTION

    def work(self, options: PTQ4DiTOptions, bits: BitSpec) -> Work:
        """Targets and quantized inputs, statistics, percentiles; iterations of one sample."""
        return Work(
            samples=options.samples,
            passes=3 + options.balance + options.token_weights,
            steps=0 if bits.is_identity else options.iterations,
            searches=True,
        )

    def quantize_(self, transformer: nn.Module, ctx: QuantContext) -> QuantReport:
        """Balance and reconstruct block by block."""
        return _Run(transformer, ctx).quantize_()


def choose(ctx: QuantContext, transformer: nn.Module) -> list[Sample]:
    """Choose the calibration samples: equally spaced timesteps, or a rule of S2Q-VDiT."""
    pool, options = ctx.calibration, ctx.options
    if options.selection == "uniform":
        return uniform_samples(pool, options.samples, options.timesteps)
    salience = pool_salience(pool, ctx.family, transformer)
    generator = ctx.generator(salt=1)
    return choose_samples(options.selection, options.samples, pool, salience, generator)


def spearman_guided_salience(salience: Tensor, weight: Tensor) -> Tensor:
    """SSC: s_rho(X_j) = sum_t eta_t s(X_j^(t)), eta = softmax_t(-rho_t) (eq. 9-11).

    Args:
        salience: s(X^(t)), ``[timesteps, in_features]``.
        weight: s(W), ``[in_features]``.

    Returns:
        ``[in_features]``.
    """
    reference = weight.double().cpu().numpy()
    rows = salience.double().cpu()
    rho = [float(spearmanr(row.numpy(), reference).statistic) for row in rows]
    eta = torch.softmax(-torch.nan_to_num(torch.tensor(rho, dtype=torch.float64)), 0)
    return (eta[:, None] * rows).sum(0).float().to(salience.device)


def balancing_scale(activation: Tensor, weight: Tensor) -> Tensor:
    """CSB: the factor by which a channel is divided, sqrt(s(X_j) / s(W_j)) = 1 / B_X (eq. 3-8).

    Args:
        activation: s(X), ``[in_features]``.
        weight: s(W), ``[in_features]``.
    """
    scale = (activation / weight.clamp_min(1e-8)).sqrt().clamp(1e-5, 1e5)
    return torch.where((activation > 0) & (weight > 1e-8), scale, torch.ones_like(scale))


class _Run:
    """One quantization: what the steps of the paper share."""

    def __init__(self, transformer: nn.Module, ctx: QuantContext) -> None:
        self.transformer = transformer
        self.ctx = ctx
        self.options: PTQ4DiTOptions = ctx.options
        self.family = ctx.family
        self.online: dict[str, list[nn.Module]] = {}

    def quantize_(self) -> QuantReport:
        """Balance, fold and reconstruct block by block."""
        options = self.options
        curves: dict[str, list[float]] = {}
        with self.ctx.part("selection"):
            chosen = choose(self.ctx, self.transformer)
        walk = Walk(
            self.transformer, self.ctx, chosen,
            inputs="quantized", verb="reconstructing", prepare=self.balance_,
            state={"curves": curves},
        )  # fmt: skip
        for walked in walk:
            reconstruction = BlockReconstruction(self.ctx, walked, self.online)
            curves[f"loss_block_{walked.index}"] = reconstruction.train(self.token_weights(walked))
            reconstruction.replace_()
        return walk.report(
            passes=1 + options.balance + options.token_weights,
            steps=len(curves["loss_block_0"]),
            notes=(
                *shortage(chosen, options.samples),
                f"{options.iterations} AdaRound iterations a block, one sample each; the "
                "released code runs 20 000 of 16 or 32 samples",
            ),
            curves=curves,
        )

    def balance_(self, block: nn.Module, inputs: Sequence[BlockInput]) -> None:
        """Balance a block and fold what can be folded, in place, before its targets are taken."""
        groups = target_groups(self.family, block, self.options.modulation)
        scales = self.channel_wise_salience_balancing(block, groups, inputs)
        self.online = apply_scales_(block, groups, scales)

    def channel_wise_salience_balancing(
        self, block: nn.Module, groups: Sequence[InputGroup], inputs: Sequence[BlockInput]
    ) -> dict[str, Tensor]:
        """Balancing factor of every balanced input group, ``[in_features]`` by group."""
        if not self.options.balance:
            return {}
        with self.ctx.part("statistics"):
            by_step = channel_absmax_by_step(block, self.family, inputs)
        scales = {}
        for group in groups:
            if group.modulation or (group.fold is None and not self.options.balance_ff_out):
                continue
            salience = by_step[group.name]
            weight = weight_absmax([linear_at(block, name) for name in group.linears]).float()
            if self.options.calibrate:
                activation = spearman_guided_salience(salience, weight)
            else:
                activation = salience[len(salience) // 2]
            scales[group.name] = balancing_scale(activation, weight)
        return scales

    def token_weights(self, walked: WalkedBlock) -> list[dict[str, Tensor]] | None:
        """Attention-guided token weights, where S2Q-VDiT's distillation is attached."""
        if not self.options.token_weights:
            return None
        with self.ctx.part("statistics"):
            masses = [block_attention_mass(walked.block, self.family, x) for x in walked.inputs]
        return [token_weights(m, lowest=self.options.lambda_min) for m in masses]
