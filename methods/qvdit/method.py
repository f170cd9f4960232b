"""Q-VDiT: token-aware quantization estimator and temporal maintenance distillation.

Q-VDiT: Towards Accurate Quantization and Distillation of Video-Generation Diffusion Transformers,
arXiv 2505.22167, ICML 2025. In five steps:
1. Weights: asymmetric per output channel, the range by grid search; activations: asymmetric,
   dynamic, per token.
2. Token-aware quantization estimator (TQE): a rank-1 branch behind the rounding,
   [(M_i * Q(X)_i) alpha] beta, with one gain M_i a frame.
3. M starts at eta_i / omega_i: how much the rounding turns a frame, over how much the frame weighs.
4. Temporal maintenance distillation (TMD): KL divergence between the similarities of output frames
   in full precision and quantized.
5. Weight steps and TQE are trained through the whole denoiser on ||S - S^||^2 + 100 L_temporal.
"""

from __future__ import annotations

import copy
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from pydantic import Field
from torch.nn import functional

from harness.api import (
    SIMULATED,
    Amount,
    BitSpec,
    Count,
    Method,
    QuantContext,
    QuantReport,
    SpacedOptions,
    Whole,
    Work,
    options,
)
from harness.quant import (
    FEED_FORWARD,
    ActivationSpec,
    SpilledInputs,
    activation_of,
    layer_reports,
    linear_at,
    replace_module_,
    shortage,
    target_linears,
    uniform_samples,
)
from methods.qvdit import budget
from methods.qvdit.denoiser_trainer import (
    OUTPUT,
    Terms,
    denoiser_calls,
    train_denoiser,
    with_output,
)
from methods.qvdit.estimated import EstimatedLinear, TokenEstimator, kaiming
from methods.qvdit.frames import frame_layouts
from methods.qvdit.gain import initial_gains
from methods.qvdit.paper import REPRODUCTION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from harness.quant import BlockInput
    from methods.qvdit.frames import FrameLayout


@options
class QVDiTOptions(SpacedOptions):
    """Knobs of Q-VDiT.

    Attributes:
        iterations: Training iterations; -1 takes the paper's (15 000 at 3 bits, 10 000 at 4, 5 000
            at 6 to 8), 0 trains nothing.
        batch: Samples an iteration.
        lr_step: Learning rate of the weight steps.
        lr_estimator: Learning rate of the estimator.
        stretch: With fewer iterations than the paper's, multiply both rates by the ratio, so that
            parameters may travel as far.
        gamma: Weight of TMD; 0 leaves it out.
        estimator: Train the token-aware estimator; False leaves the learned steps alone.
        gain: Give the estimator its gain per frame M; False is the paper's ablation without M.
        inner_rank: Rank of a trained branch *inside* the rounding, as the released code has it
            (32); the paper has none.
        train_activations: Round activations in training as the paper's formula does; False as in
            the released code, where they are rounded only afterwards.
        grid_points: Points of the search of the initial weight range.
        ff_bits: Width of the feed-forward linears, weights and activations, where it is more than
            the nominal; 8 in the released 3- and 4-bit configurations, 0 for the nominal.
        checkpointing: Compute blocks again on the way back, as the released code does; False
            trades memory for time and changes no result.
    """

    iterations: Annotated[int, Field(ge=budget.BY_PAPER)] = budget.BY_PAPER
    batch: Count = budget.PAPER_BATCH
    lr_step: Amount = 1e-6  # Q-VDiT, implementation details
    lr_estimator: Amount = 1e-5  # Q-VDiT, implementation details
    stretch: bool = False
    gamma: Amount = 100.0  # Q-VDiT, implementation details
    estimator: bool = True
    gain: bool = True
    inner_rank: Whole = 0
    train_activations: bool = True
    grid_points: Count = 50  # released code, grid_search_lp
    ff_bits: Annotated[int, Field(ge=0, le=8)] = 0
    checkpointing: bool = True


class QVDiT(Method):
    """Token-aware estimator, temporal distillation, training through the whole denoiser."""

    name = "qvdit"
    Options = QVDiTOptions
    needs_calibration = True
    reproduction = REPRODUCTION
    # 200 steps through the whole denoiser, of one sample each
    quick: ClassVar = {"iterations": 200, "batch": 1, "stretch": True, "checkpointing": False}
    quick_s = 120.0

    def work(self, options: QVDiTOptions, bits: BitSpec) -> Work:
        """What ``budget`` counts."""
        return budget.training_work(options, bits)

    def quantize_(self, transformer: nn.Module, ctx: QuantContext) -> QuantReport:
        """Train through the whole denoiser, then round."""
        return _Run(transformer, ctx).quantize_()


def temporal_loss(quantized: Tensor, exact: Tensor) -> Tensor:
    """TMD: sum_i KL(D_i^FP || D_i^Q), D_i = softmax_j of the cosines of frames i and j.

    Args:
        quantized: Output of the quantized denoiser, ``[batch, frames, features]``.
        exact: The same in full precision.

    Returns:
        Mean over the batch.
    """
    logs = []
    for frames in (exact, quantized):
        unit = functional.normalize(frames, dim=-1)
        logs.append(torch.log_softmax(unit @ unit.transpose(-1, -2), -1))
    return (
        functional.kl_div(logs[1], logs[0], reduction="none", log_target=True).sum((-2, -1)).mean()
    )


class _Run:
    """One quantization: what the steps of the paper share."""

    def __init__(self, transformer: nn.Module, ctx: QuantContext) -> None:
        self.transformer, self.ctx = transformer, ctx
        self.options: QVDiTOptions = ctx.options
        self.targets = target_linears(ctx.family, transformer, ctx.options.modulation)
        self.iterations = budget.training_iterations(self.options.iterations, ctx.bits.w)
        if ctx.bits.is_identity:  # learned corrections off
            self.iterations = 0
        stretch = self.options.stretch
        self.rate_factor = budget.rate_factor(self.iterations, ctx.bits.w, stretch=stretch)

    def quantize_(self) -> QuantReport:
        """Record, train, round."""
        started = time.perf_counter()
        options, pool = self.options, self.ctx.calibration
        chosen = uniform_samples(pool, options.samples, options.timesteps)
        with tempfile.TemporaryDirectory(prefix="harness-", dir=self.ctx.scratch) as folder:
            calls = SpilledInputs(Path(folder), self.ctx.device)
            for call in denoiser_calls(pool, chosen, options.branches, self.ctx.device):
                self.ctx.progress(0.0, f"full-precision output {len(calls) + 1}/{len(chosen)}")
                calls.extend([with_output(self.transformer, call)])
            layouts = frame_layouts(self.transformer, self.ctx.family, self.targets, calls[0])
            gains = self.initial_gains(layouts, calls)
            trained = copy.deepcopy(self.transformer).float().requires_grad_(False)
            layers = self.trainable_(trained, layouts, gains)
            curves = self.train(trained, layers, calls)
            branches = calls[0].branches
        for name, layer in layers.items():
            linear = linear_at(self.transformer, name)
            replace_module_(self.transformer, name, layer.quantized(linear))
        # M takes one more pass; one more call tells where the frames lie
        spent = ((1 + bool(gains)) * len(chosen) + 1 + self.iterations * options.batch) * branches
        return QuantReport(
            execution=SIMULATED,
            layers=layer_reports(self.transformer),
            calibration_clips=len(pool.prompts),
            calibration_forwards=pool.forwards + spent,
            calibration_samples=len(chosen),
            seconds=time.perf_counter() - started,
            notes=(*shortage(chosen, options.samples), *self.notes(gains)),
            curves=curves,
            mixed=self.mixed(),
        )

    def widths(self, name: str) -> BitSpec:
        """Widths of a linear: the nominal ones, or those of the feed-forward network.

        A linear that is attention output and second feed-forward linear in one (HunyuanVideo's
        single blocks) counts as the latter: it has one width, and ``ff_bits`` promises its own to
        the whole feed-forward.
        """
        nominal, group = self.ctx.bits, self.targets[name]
        raised = self.options.ff_bits
        if not raised or group.purpose(name) not in FEED_FORWARD:
            return nominal
        return BitSpec(w=max(nominal.w, raised), a=max(nominal.a, raised))

    def activation(self, name: str) -> ActivationSpec:
        """Dynamic asymmetric grid per token."""
        spec = ActivationSpec(bits=self.widths(name).a, symmetric=False)
        return activation_of(self.targets[name], spec)

    def initial_gains(
        self, layouts: dict[str, FrameLayout], calls: Sequence[BlockInput]
    ) -> dict[str, Tensor]:
        """Start of M by linear that sees frames; empty where there is no M."""
        if self.ctx.bits.is_identity or not (self.options.estimator and self.options.gain):
            return {}
        return initial_gains(self.transformer, calls, layouts, self.activation)

    def trainable_(
        self, trained: nn.Module, layouts: dict[str, FrameLayout], gains: dict[str, Tensor]
    ) -> dict[str, EstimatedLinear]:
        """Put the trainable form of every target into a copy of the denoiser, in place."""
        options, generator = self.options, self.ctx.generator(salt=2)
        layers = {}
        for name, group in self.targets.items():
            linear, estimator, inner = linear_at(trained, name), None, None
            width, corrected = linear.in_features, not self.ctx.bits.is_identity
            if corrected and options.estimator and not group.modulation:
                down = kaiming(1, width, generator).to(linear.weight.device)
                text = layouts[name].text_tokens if name in layouts else 0
                estimator = TokenEstimator(down, linear.out_features, gains.get(name), text)
            if corrected and options.inner_rank:
                inner = kaiming(options.inner_rank, width, generator).to(linear.weight.device)
            layers[name] = EstimatedLinear(
                linear, self.widths(name).w, self.activation(name),
                points=options.grid_points, estimator=estimator, inner=inner,
            )  # fmt: skip
            layers[name].round_input = options.train_activations
            replace_module_(trained, name, layers[name])
        return layers

    def train(
        self, trained: nn.Module, layers: dict[str, EstimatedLinear], calls: Sequence[BlockInput]
    ) -> dict[str, list[float]]:
        """Minimise ||S - S^||^2 + gamma L_temporal of the denoiser's output."""
        options, frames = self.options, self.ctx.family.frames

        def loss(out: Tensor, call: BlockInput) -> Terms:
            exact = call.streams[OUTPUT]
            terms = {"loss_output": functional.mse_loss(out.float(), exact)}
            if options.gamma:
                pair = [frames(trained, value, call.fixed) for value in (out.float(), exact)]
                terms["loss_temporal"] = options.gamma * temporal_loss(pair[0], pair[1])
            return terms

        groups = [
            {
                "params": [p for layer in layers.values() for p in layer.steps()],
                "lr": options.lr_step * self.rate_factor,
            },
            {
                "params": [p for layer in layers.values() for p in layer.corrections()],
                "lr": options.lr_estimator * self.rate_factor,
            },
        ]
        return train_denoiser(
            trained, calls, groups, loss,
            steps=self.iterations, batch=options.batch, generator=self.ctx.generator(salt=3),
            checkpointing=options.checkpointing, progress=self.ctx.progress, kept=self.ctx.kept,
        )  # fmt: skip

    def notes(self, gains: dict[str, Tensor]) -> tuple[str, ...]:
        """What a reader of the table must know: a short training, linears without M."""
        found: list[str] = []
        if not self.ctx.bits.is_identity:
            w, batch = self.ctx.bits.w, self.options.batch
            found += budget.short_note(self.iterations, batch, w, self.rate_factor)
        estimated = sum(not g.modulation for g in self.targets.values())
        if gains and len(gains) < estimated:
            found.append(
                f"gain per frame in {len(gains)} of {estimated} estimators; the other linears "
                "read text, or one frame at a time"
            )
        return tuple(found)

    def mixed(self) -> str:
        """Why widths differ from the label, empty where they do not."""
        raised = [n for n in self.targets if self.widths(n) != self.ctx.bits]
        if not raised:
            return ""
        ff = self.options.ff_bits
        return f"feed-forward linears at {ff} bits, as in the released 3- and 4-bit configurations"
