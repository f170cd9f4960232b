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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from harness.api import (
    SIMULATED,
    BitSpec,
    Deviation,
    QuantContext,
    QuantReport,
    Reproduction,
    Unsupported,
)
from harness.models.families.base import FEED_FORWARD, linear_at
from harness.quant.calibration.capture import BRANCHES, observing
from harness.quant.calibration.salience import shortage
from harness.quant.calibration.samples import uniform_samples
from harness.quant.calibration.spill import SpilledInputs
from harness.quant.layers.activation import ActivationSpec, quantize_activation
from harness.quant.layers.apply import MODULATION, activation_of, layer_reports, targets
from harness.quant.layers.layers import replace_module_
from harness.quant.options import check_choice, check_range
from methods.qvdit.denoiser_trainer import (
    OUTPUT,
    Terms,
    denoiser_calls,
    train_denoiser,
    with_output,
)
from methods.qvdit.estimated import EstimatedLinear, TokenEstimator, kaiming
from methods.qvdit.frames import FrameLayout, frame_layouts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from harness.models.block_input import BlockInput, Sample

PAPER_BATCH = 4  # Q-VDiT, implementation details
BY_PAPER = -1
"""Value of ``iterations`` that takes the paper's number for the width."""


def paper_iterations(w_bits: int) -> int:
    """Training iterations of the paper by weight width (Q-VDiT, implementation details)."""
    if w_bits <= 3:
        return 15_000
    return 10_000 if w_bits <= 4 else 5_000


@dataclass(frozen=True, kw_only=True, slots=True)
class QVDiTOptions:
    """Knobs of Q-VDiT.

    Attributes:
        samples: (prompt, timestep) samples; the paper takes 10 prompts x 50 timesteps.
        timesteps: Equally spaced timesteps of them.
        branches: Guidance branches of a sample: ``both``, ``alternate`` or ``cond``.
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
        modulation: ``w`` quantizes the weights of modulation linears, ``fp`` leaves them out.
    """

    samples: int = 40
    timesteps: int = 10
    branches: str = "alternate"
    iterations: int = BY_PAPER
    batch: int = PAPER_BATCH
    lr_step: float = 1e-6  # Q-VDiT, implementation details
    lr_estimator: float = 1e-5  # Q-VDiT, implementation details
    stretch: bool = False
    gamma: float = 100.0  # Q-VDiT, implementation details
    estimator: bool = True
    gain: bool = True
    inner_rank: int = 0
    train_activations: bool = True
    grid_points: int = 50  # released code, grid_search_lp
    ff_bits: int = 0
    checkpointing: bool = True
    modulation: str = "w"

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            UsageError: A value is unknown or out of range.
        """
        for option in ("samples", "timesteps", "batch", "grid_points"):
            check_range(option, getattr(self, option), 1)
        for option in ("lr_step", "lr_estimator", "gamma", "inner_rank"):
            check_range(option, getattr(self, option), 0)
        check_range("iterations", self.iterations, BY_PAPER)
        check_range("ff_bits", self.ff_bits, 0, 8)
        check_choice("branches", self.branches, BRANCHES)
        check_choice("modulation", self.modulation, MODULATION)


_DEVIATIONS = (
    Deviation(
        kind="adaptation",
        what="frames are the latent frames of a 3D VAE, contiguous in the token sequence; text "
        "tokens in a joint sequence have gain 1, linears that read text alone or one frame at a "
        "time have an estimator without M, modulation linears none; M holds for the number of "
        "frames it was fitted on",
        why="the paper treats STDiT, whose text is apart and whose attention is split in space and "
        "time",
    ),
    Deviation(
        kind="deviation",
        what="40 samples, one guidance branch each, alternating; the paper takes 10 prompts x 50 "
        "timesteps, its code both branches",
        why="the same calibration data for every method",
    ),
    Deviation(
        kind="reconstructed",
        what="the estimator stands in every linear, and M once where a linear sees frames, "
        "starting at eta / omega (mean over samples), as the paper writes; in the released code M "
        "exists in temporal attention only, starts at one, and the branch enters twice",
        why="paper and code differ; the paper is followed",
    ),
    Deviation(
        kind="reconstructed",
        what="there is no branch inside the rounding; the released code adds a rank-32 one to "
        "every weight before it is rounded (`inner_rank` = 32)",
        why="paper and code differ; the paper is followed",
    ),
    Deviation(
        kind="reconstructed",
        what="activations are rounded in training; in the released code they are rounded only "
        "afterwards (`train_activations` = false)",
        why="paper and code differ; the paper is followed",
    ),
    Deviation(
        kind="reconstructed",
        what="the output is permuted to [batch, frames, channels x height x width] before TMD "
        "compares frames; the released code reshapes [b, c, t, h, w] without permuting, so that "
        "its 'frames' are slices of the channels",
        why="the paper's text; the code has a defect",
    ),
    Deviation(
        kind="reconstructed",
        what="||S - S^||^2 is a mean over the output, L_temporal a sum over frames, similarities "
        "are cosines at temperature 1",
        why="the paper prints norms and sums, its code takes means throughout; with one weight of "
        "100 either reading is possible",
    ),
    Deviation(
        kind="reconstructed",
        what="uniform widths; in the released 3- and 4-bit configurations the feed-forward linears "
        "are W8A8 (`ff_bits` = 8, then reported as mixed)",
        why="the paper names the width without exception",
    ),
    Deviation(
        kind="deviation",
        what="no SmoothQuant scale; the released W4A8 and W6A6 configurations have one (alpha 0.11 "
        "and 0.5), its W4A6 and W8A8 have none",
        why="the paper does not mention it",
    ),
    Deviation(
        kind="reconstructed",
        what="the range search tries 50 shares of the full range from 0.02 to 1; the released "
        "code's go from 0 to 0.98. Zero points stay as found; the steps alone are learned",
        why="the full range must be among the candidates",
    ),
    Deviation(
        kind="adaptation",
        what="every linear inside the blocks is quantized; modulation linears keep 16-bit "
        "activations",
        why="the same target set for every method",
    ),
)


class QVDiT:
    """Token-aware estimator, temporal distillation, training through the whole denoiser."""

    name = "qvdit"
    version = 1
    Options = QVDiTOptions
    needs_calibration = True
    unquantized = False
    reproduction = Reproduction(
        title="Q-VDiT: Towards Accurate Quantization and Distillation of Video-Generation "
        "Diffusion Transformers",
        source="arXiv 2505.22167 (ICML 2025)",
        code="https://github.com/cantbebetter2/Q-VDiT (STDiT of Open-Sora; differs from the paper, "
        "see the deviations)",
        rows=(
            (
                "Open-Sora W4A6, VBench: imaging 57.49, aesthetic 55.18, scene 38.66 "
                "(fp 63.68, 57.12, 39.61)"
            ),
            "Open-Sora W3A6, VBench: imaging 53.60, aesthetic 49.66, scene 23.40",
        ),
        deviations=_DEVIATIONS,
    )

    def supports(self, family: str, bits: BitSpec) -> Unsupported | None:
        """Every family and width."""
        return None

    def quantize_(self, transformer: nn.Module, ctx: QuantContext) -> QuantReport:
        """Train through the whole denoiser, then round."""
        return _Run(transformer, ctx).quantize_()


def initial_gain(x: Tensor, rounded: Tensor) -> Tensor:
    """Start of M: eta_i / omega_i, ``[batch, frames]``.

    eta_i = softmax_i(1 - rho(X_i, Q(X)_i)) with rho the cosine similarity, omega_i the share of
    frame i in sum |X| (Q-VDiT, TQE).

    Args:
        x: Input of a linear cut into frames, ``[batch, frames, tokens * in_features]``.
        rounded: The same, rounded.
    """
    rho = functional.cosine_similarity(x, rounded, dim=-1)
    eta = torch.softmax(1 - rho, -1)
    mass = x.abs().sum(-1)
    tiny = torch.finfo(mass.dtype).tiny
    omega = (mass / mass.sum(-1, keepdim=True).clamp_min(tiny)).clamp_min(tiny)
    return eta / omega


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
        self.targets = targets(ctx.family, transformer, ctx.options.modulation)
        wanted = self.options.iterations
        self.iterations = paper_iterations(ctx.bits.w) if wanted == BY_PAPER else wanted
        if ctx.bits.is_identity:  # learned corrections off
            self.iterations = 0

    def quantize_(self) -> QuantReport:
        """Record, train, round."""
        started = time.perf_counter()
        options, pool = self.options, self.ctx.calibration
        chosen = uniform_samples(pool, options.samples, options.timesteps)
        with tempfile.TemporaryDirectory(prefix="harness-", dir=self.ctx.scratch) as folder:
            calls = self.record(chosen, Path(folder))
            layouts = frame_layouts(self.transformer, self.ctx.family, self.targets, calls[0])
            gains = self.initial_gains(layouts, calls)
            trained = copy.deepcopy(self.transformer).float().requires_grad_(False)
            layers = self.trainable_(trained, layouts, gains)
            curves = self.train(trained, layers, calls)
            branches = calls[0].branches
        for name, layer in layers.items():
            linear = linear_at(self.transformer, name)
            replace_module_(self.transformer, name, layer.quantized(linear))
        passes = 1 + bool(gains)
        # one more call tells where the frames lie
        spent = (passes * len(chosen) + 1 + self.iterations * options.batch) * branches
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

    @property
    def rate_factor(self) -> float:
        """Factor on both learning rates."""
        paper = paper_iterations(self.ctx.bits.w)
        if not self.options.stretch or not 0 < self.iterations < paper:
            return 1.0
        return paper / self.iterations

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

    def record(self, chosen: Sequence[Sample], folder: Path) -> SpilledInputs:
        """Arguments and full-precision output of the denoiser at every sample, on disk."""
        calls = denoiser_calls(self.ctx.calibration, chosen, self.options.branches, self.ctx.device)
        spilled = SpilledInputs(folder, self.ctx.device)
        for i, call in enumerate(calls):
            self.ctx.progress(0.0, f"full-precision output {i + 1}/{len(chosen)}")
            spilled.extend([with_output(self.transformer, call)])
        return spilled

    def initial_gains(
        self, layouts: dict[str, FrameLayout], calls: Sequence[BlockInput]
    ) -> dict[str, Tensor]:
        """Start of M, mean over samples, ``[frames]`` by linear that sees frames."""
        if self.ctx.bits.is_identity or not (self.options.estimator and self.options.gain):
            return {}
        sums: dict[str, Tensor] = {}

        def see(name: str, x: Tensor) -> None:
            rounded = quantize_activation(x.float(), self.activation(name))
            cut = layouts[name].cut
            gain = initial_gain(cut(x.float()), cut(rounded)).mean(0)
            sums[name] = sums[name] + gain if name in sums else gain

        with torch.no_grad(), observing(self.transformer, list(layouts), see):
            for call in calls:
                with_output(self.transformer, call)
        return {name: total / len(calls) for name, total in sums.items()}

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
        options = self.options

        def loss(out: Tensor, call: BlockInput) -> Terms:
            exact = call.streams[OUTPUT]
            terms = {"loss_output": functional.mse_loss(out.float(), exact)}
            if options.gamma:
                pair = [self.frames(value, call) for value in (out.float(), exact)]
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
            checkpointing=options.checkpointing, progress=self.ctx.progress,
        )  # fmt: skip

    def frames(self, value: Tensor, call: BlockInput) -> Tensor:
        """Cut a denoiser output into frames ``[batch, frames, features]``."""
        return self.ctx.family.frames(self.transformer, value, call.fixed)

    def notes(self, gains: dict[str, Tensor]) -> tuple[str, ...]:
        """What a reader of the table must know: a short training, linears without M."""
        options, found = self.options, []
        paper = paper_iterations(self.ctx.bits.w)
        if not self.ctx.bits.is_identity and self.iterations * options.batch < paper * PAPER_BATCH:
            rates = f" at {self.rate_factor:g} x its rates" if self.rate_factor != 1 else ""
            found.append(
                f"trained for {self.iterations} iterations of {options.batch}{rates}, "
                f"{paper} of {PAPER_BATCH} in the paper"
            )
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
