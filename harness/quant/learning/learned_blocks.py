"""Learning the transforms of a block, then folding and rounding it: the trainer of FlatQuant.

The part that FlatQuant (arXiv 2410.09426) and S2Q-VDiT (arXiv 2508.04016, App. A) have in common. A
method brings the data and the loss weights; what differs between two methods with the same
``LearnedOptions`` is then their data and their loss alone.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from harness.bits import IDENTITY_WIDTH
from harness.method import Work
from harness.models.families.base import linear_at
from harness.options import Amount, Prefix, Rounding, SampleOptions, Share, Whole, options
from harness.quant.calibration.statistics import channel_absmax
from harness.quant.layers.activation import ActivationSpec
from harness.quant.layers.apply import activation_of
from harness.quant.layers.grid import weight_grid
from harness.quant.layers.layers import replace_module_
from harness.quant.layers.linear import (
    QuantLinear,
    WeightSpec,
    quantize_linear,
    stored_grid,
    transformed_weight,
)
from harness.quant.learning.block_trainer import BlockTask, train_block
from harness.quant.learning.learned import (
    LearnedInput,
    LearnedLinear,
    clip_parameters,
    transform_parameters,
)
from harness.quant.rounding.gptq import gptq
from harness.quant.rounding.smoothing import apply_scale_, weight_absmax

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from harness.bits import BitSpec
    from harness.method import QuantContext
    from harness.models.families.base import InputGroup
    from harness.quant.calibration.walk import WalkedBlock

PAPER_EPOCHS = 15  # S2Q-VDiT App. A; FlatQuant's implementation details
FLOOR = 1e-3  # final learning rate over the first; FlatQuant's released code, cali_flat_quant


@options
class LearnedOptions(SampleOptions):
    """What the learned methods let one choose besides their data.

    Attributes:
        scale: Learn a channel scale.
        rotation: Start of the Kronecker transform: ``hadamard``, ``random``, ``identity``, or
            ``none`` for no transform.
        learn: Train at all; False keeps scale and rotation at their start and clips nothing.
        epochs: Passes over ``samples`` samples for each block; where fewer were found, the
            optimiser still takes epochs * samples steps, so that methods differ in their data
            alone.
        lr_transform: Learning rate of scale and transform.
        lr_clip: Learning rate of the clipping thresholds.
        smoothing: Exponent of the initial scale, SmoothQuant's alpha.
        inputs: Block inputs during training: ``fp`` from the full-precision model, ``quantized``
            from the quantized blocks before it (targets stay full precision).
        rounding: ``gptq`` or ``rtn``.
        precision: Of the block's activations and products in training: ``float32``, or ``bfloat16``
            in half the memory; transforms, steps and losses are in single precision in both.
    """

    scale: bool = True
    rotation: Literal["hadamard", "random", "identity", "none"] = "hadamard"
    learn: bool = True
    epochs: Whole = PAPER_EPOCHS
    lr_transform: Amount = 5e-3  # S2Q-VDiT App. A; FlatQuant's released scripts, --flat_lr
    lr_clip: Amount = 5e-2  # S2Q-VDiT App. A; FlatQuant's released code, ten times --flat_lr
    smoothing: Share = 0.5  # SmoothQuant's default (arXiv 2211.10438); FlatQuant's code has 0.3
    inputs: Prefix = "fp"
    rounding: Rounding = "gptq"
    precision: Literal["float32", "bfloat16"] = "float32"


def short_training(options: LearnedOptions) -> tuple[str, ...]:
    """Say so where a block is trained for fewer epochs than in the papers."""
    if not options.learn or options.epochs >= PAPER_EPOCHS:
        return ()
    return (f"trained for {options.epochs} epochs a block, {PAPER_EPOCHS} in the paper",)


def learning_work(options: LearnedOptions, bits: BitSpec, *, passes: int = 0) -> Work:
    """What learning every block computes: outputs, statistics and Hessians, training steps.

    Args:
        options: Of the trainer.
        bits: Widths of the row; nothing is trained at 16 bits.
        passes: Passes of the samples through a block that the method adds.
    """
    trains = options.learn and not bits.is_identity
    own = 1 + (options.inputs == "quantized") + BlockLearner.passes
    return Work(
        samples=options.samples,
        passes=own + passes,
        steps=options.epochs * options.samples if trains else 0,
    )


class LearnedBlock(NamedTuple):
    """A trained block: the shared inputs by group name, the linears by name."""

    inputs: dict[str, LearnedInput]
    linears: dict[str, LearnedLinear]

    def begin_step(self) -> None:
        """Compute maps and rounded weights for the optimiser step that begins."""
        for shared in self.inputs.values():
            shared.begin_step()
        for linear in self.linears.values():
            linear.begin_step()

    def end_step(self) -> None:
        """Forget what belongs to the last optimiser step."""
        for shared in self.inputs.values():
            shared.end_step()
        for linear in self.linears.values():
            linear.end_step()


class BlockLearner:
    """Learns and rounds one block after the other.

    Args:
        ctx: Widths, family, seed; its options are ``LearnedOptions``.

    Attributes:
        curves: Loss of every optimiser step, by ``loss_block_<index>``.
        passes: Passes of the samples through a block besides training: statistics and Hessians.
    """

    passes = 2

    def __init__(self, ctx: QuantContext) -> None:
        self.ctx = ctx
        self.options: LearnedOptions = ctx.options
        self.curves: dict[str, list[float]] = {}
        self.dtype: torch.dtype = getattr(torch, self.options.precision)

    def quantize_block_(
        self, walked: WalkedBlock, weights: Sequence[dict[str, Tensor]] | None = None
    ) -> None:
        """Learn a block against its full-precision outputs and replace its linears, in place.

        Args:
            walked: The block.
            weights: Loss weights of the tokens of every sample, None weighs all alike.
        """
        task = BlockTask(inputs=walked.given, targets=walked.targets, weights=weights)
        self.fold_and_round_(walked, self.learn_block(walked, task))

    @property
    def steps_taken(self) -> int:
        """Optimiser steps that a block took."""
        return len(self.curves["loss_block_0"])

    def learn_block(self, walked: WalkedBlock, task: BlockTask) -> LearnedBlock:
        """Learn scale, transform and clipping of a block (S2Q-VDiT App. A) and return them.

        Args:
            walked: Full-precision block; it is not changed.
            task: Data.
        """
        options, block = self.options, walked.block
        generator = self.ctx.generator(salt=100 + walked.index)
        with self.ctx.part("statistics"):
            absmax = channel_absmax(block, self.ctx.family, task.inputs)
        trained, found = self.trainable(block, walked.groups, absmax, generator)

        def begin_step(step: int) -> None:
            found.begin_step()

        trains = options.learn and not self.ctx.bits.is_identity
        steps = options.epochs * options.samples if trains else 0
        groups = [
            {"params": transform_parameters(trained), "lr": options.lr_transform},
            {"params": clip_parameters(trained), "lr": options.lr_clip},
        ]
        with self.ctx.part("training"):
            self.curves[f"loss_block_{walked.index}"] = train_block(
                trained, self.ctx.family, task, [{**g, "weight_decay": 0.0} for g in groups],
                optimizer=torch.optim.AdamW, steps=steps, generator=generator,
                floor=FLOOR, before_step=begin_step, dtype=self.dtype, progress=walked.progress,
            )  # fmt: skip
        found.end_step()
        return found

    def trainable(
        self,
        block: nn.Module,
        groups: Sequence[InputGroup],
        absmax: Mapping[str, Tensor],
        generator: torch.Generator,
    ) -> tuple[nn.Module, LearnedBlock]:
        """A copy of a block with the trainable form of its linears in it, and those.

        Args:
            block: Full-precision block.
            groups: Its input groups.
            absmax: Per-channel maximum of their inputs, ``[in_features]`` by group.
            generator: Of the initial rotations.
        """
        trained = _in_precision_(copy.deepcopy(block), self.dtype)
        found = LearnedBlock({}, {})
        for group in groups:
            self._prepare_(trained, block, group, absmax[group.name], found, generator)
        return trained, found

    def _prepare_(
        self,
        trained: nn.Module,
        block: nn.Module,
        group: InputGroup,
        absmax: Tensor,
        found: LearnedBlock,
        generator: torch.Generator,
    ) -> None:
        """Put the trainable form of a group's linears into ``trained``, in place."""
        options, bits = self.options, self.ctx.bits
        linears = {n: linear_at(block, n) for n in group.linears}
        scale = None
        if options.scale and not group.modulation:
            scale = initial_scale(absmax, list(linears.values()), options.smoothing)
        shared = LearnedInput(
            absmax.numel(),
            activation_of(group, ActivationSpec(bits=bits.a)).bits,
            scale=scale,
            rotation="none" if group.modulation else options.rotation,
            clip=options.learn,
            generator=generator,
            readers=1 if group.split else len(group.linears),
        ).to(self.ctx.device)
        found.inputs[group.name] = shared
        for name, linear in linears.items():
            dtype = None if self.dtype == torch.float32 else self.dtype
            learned = LearnedLinear(linear, shared, bits.w, clip=options.learn, dtype=dtype)
            found.linears[name] = learned.to(self.ctx.device)
            replace_module_(trained, name, found.linears[name])

    @torch.no_grad()
    def fold_and_round_(self, walked: WalkedBlock, learned: LearnedBlock) -> None:
        """Fold scales into their producers, round every weight in its learned basis, in place."""
        transforms = {
            g.name: _fold_(walked.block, g, learned.inputs[g.name]) for g in walked.groups
        }
        hessians = walked.hessians(transforms)
        with self.ctx.part("rounding"):
            self._round_(walked, learned, transforms, hessians)

    def _round_(
        self,
        walked: WalkedBlock,
        learned: LearnedBlock,
        transforms: Mapping[str, Sequence[nn.Module]],
        hessians: Mapping[str, Tensor],
    ) -> None:
        for name, linear, group in walked.linears():
            steps, hessian = transforms[group.name], hessians[name]
            layer = self._round_linear(linear, group, steps, learned, name, hessian)
            walked.replace_(name, layer, hessian=hessian)

    def _round_linear(
        self,
        linear: nn.Linear,
        group: InputGroup,
        steps: Sequence[nn.Module],
        learned: LearnedBlock,
        name: str,
        hessian: Tensor,
    ) -> QuantLinear:
        """Round one weight on its learned grid."""
        weight = WeightSpec(bits=self.ctx.bits.w)
        low, high = learned.inputs[group.name].clip_factors()
        spec = ActivationSpec(bits=self.ctx.bits.a, clip_low=low, clip_high=high)
        activation = activation_of(group, spec)
        if weight.bits == IDENTITY_WIDTH:
            return quantize_linear(linear, weight, activation, transforms=steps)
        mapped = transformed_weight(linear.weight.float(), steps)
        clip_low, clip = learned.linears[name].clip_factors()
        grid = stored_grid(weight_grid(mapped, weight.bits, clip=clip, clip_low=clip_low))
        codes = None
        if self.options.rounding == "gptq":
            codes = gptq(mapped, hessian, grid, weight.bits)
        return quantize_linear(linear, weight, activation, transforms=steps, grid=grid, codes=codes)


def _in_precision_(block: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Bring a block to single precision, or to bfloat16 where no part of it is in that already.

    In place. A model that runs in bfloat16 keeps the parts in single precision that it has so.
    """
    if dtype == torch.float32:
        return block.float()
    if any(p.dtype == dtype for p in block.parameters()):
        return block
    return block.to(dtype)


def _fold_(block: nn.Module, group: InputGroup, shared: LearnedInput) -> list[nn.Module]:
    """Fold the scale of a group, in place; return the transforms that stay online."""
    scale, kronecker = shared.scale(), shared.kronecker()
    steps = [] if scale is None else apply_scale_(block, group, scale)
    return steps if kronecker is None else [*steps, kronecker]


def initial_scale(absmax: Tensor, linears: Sequence[nn.Linear], alpha: float) -> Tensor:
    """SmoothQuant's scale s_j = max|X_j|^alpha / max|W_j|^(1-alpha) (arXiv 2211.10438, eq. 4).

    Args:
        absmax: ``[in_features]`` of the shared input.
        linears: The linears that read it.
        alpha: Migration strength.
    """
    weight = weight_absmax(linears)
    scale = absmax.clamp_min(1e-5) ** alpha / weight.clamp_min(1e-5) ** (1 - alpha)
    return scale.clamp(1e-5, 1e5)
