"""Learning the transforms of a block, then folding and rounding it: the trainer of FlatQuant.

The part that FlatQuant (arXiv 2410.09426) and S2Q-VDiT (arXiv 2508.04016, App. A) have in common. A
method brings the data, the loss weights and a ``Recipe``; what differs between two methods that
share a recipe is then their data and their loss alone.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from harness.bits import IDENTITY_WIDTH
from harness.models.families.base import linear_at
from harness.quant.calibration.capture import BRANCHES
from harness.quant.calibration.statistics import channel_absmax
from harness.quant.calibration.walk import block_groups
from harness.quant.layers.activation import ActivationSpec
from harness.quant.layers.apply import MODULATION, activation_of
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
    ROTATIONS,
    LearnedInput,
    LearnedLinear,
    clip_parameters,
    transform_parameters,
)
from harness.quant.options import check_choice, check_range
from harness.quant.rounding.gptq import gptq, linear_hessians, output_error
from harness.quant.rounding.smoothing import apply_scale_

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from harness.method import QuantContext
    from harness.models.block_input import BlockInput
    from harness.models.families.base import InputGroup

PAPER_EPOCHS = 15  # S2Q-VDiT App. A; FlatQuant's implementation details
FLOOR = 1e-3  # final learning rate over the first; FlatQuant's released code, cali_flat_quant


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How a block is learned.

    Attributes:
        scale: Learn a channel scale.
        rotation: Start of the Kronecker transform: ``hadamard``, ``random``, ``identity``, or
            ``none`` for no transform.
        learn: Train at all; False keeps scale and rotation at their start and clips nothing.
        steps: Optimiser steps a block, one sample each.
        lr_transform: Learning rate of scale and transform.
        lr_clip: Learning rate of the clipping thresholds.
        smoothing: Exponent of the initial scale, SmoothQuant's alpha.
        rounding: ``gptq`` or ``rtn``.
        modulation: ``w`` quantizes the weights of modulation linears, ``fp`` leaves them out.
    """

    scale: bool
    rotation: str
    learn: bool
    steps: int
    lr_transform: float
    lr_clip: float
    smoothing: float
    rounding: str
    modulation: str

    @classmethod
    def of(cls, options: Any) -> Recipe:
        """Take the recipe out of a method's options, which name its parts alike.

        ``steps`` are the options' ``epochs`` times ``samples``, also where fewer samples were
        found, so that methods differ in their data alone.
        """
        named = {f.name: getattr(options, f.name) for f in fields(cls) if f.name != "steps"}
        return cls(steps=options.epochs * options.samples, **named)


def check_recipe(options: Any) -> None:
    """Refuse options of a learned method that no recipe can be made of.

    Raises:
        UsageError: A value is unknown or out of range.
    """
    check_range("samples", options.samples, 1)
    check_range("epochs", options.epochs, 0)
    check_choice("rotation", options.rotation, ROTATIONS)
    check_range("lr_transform", options.lr_transform, 0)
    check_range("lr_clip", options.lr_clip, 0)
    check_range("smoothing", options.smoothing, 0, 1)
    check_choice("branches", options.branches, BRANCHES)
    check_choice("inputs", options.inputs, ("fp", "quantized"))
    check_choice("rounding", options.rounding, ("gptq", "rtn"))
    check_choice("modulation", options.modulation, MODULATION)


def short_training(options: Any) -> tuple[str, ...]:
    """Say so where a block is trained for fewer epochs than in the papers."""
    if not options.learn or options.epochs >= PAPER_EPOCHS:
        return ()
    return (f"trained for {options.epochs} epochs a block, {PAPER_EPOCHS} in the paper",)


class LearnedBlock(NamedTuple):
    """A trained block: the shared inputs by group name, the linears by name."""

    inputs: dict[str, LearnedInput]
    linears: dict[str, LearnedLinear]


class BlockLearner:
    """Learns and rounds one block after the other.

    Args:
        ctx: Widths, family, seed.
        recipe: How.

    Attributes:
        curves: Loss of every optimiser step, by ``loss_block_<index>``.
        errors: Relative output error of every rounded linear, by qualified name.
        passes: Passes of the samples through a block besides training: statistics and Hessians.
    """

    passes = 2

    def __init__(self, ctx: QuantContext, recipe: Recipe) -> None:
        self.ctx, self.recipe = ctx, recipe
        self.curves: dict[str, list[float]] = {}
        self.errors: dict[str, float] = {}

    def quantize_block_(self, prefix: str, block: nn.Module, task: BlockTask, index: int) -> None:
        """Learn a block against its task and replace its linears, in place."""
        self.fold_and_round_(prefix, block, self.learn_block(block, task, index), task.inputs)

    @property
    def steps_taken(self) -> int:
        """Optimiser steps that a block took."""
        return len(self.curves["loss_block_0"])

    def groups(self, block: nn.Module) -> list[InputGroup]:
        """Target groups of a block under the modulation option."""
        return block_groups(self.ctx.family, block, self.recipe.modulation)

    def learn_block(self, block: nn.Module, task: BlockTask, index: int) -> LearnedBlock:
        """Learn scale, transform and clipping of a block (S2Q-VDiT App. A) and return them.

        Args:
            block: Full-precision block; it is not changed.
            task: Data.
            index: Of the block, for the seed and the name of its loss curve.
        """
        recipe = self.recipe
        generator = self.ctx.generator(salt=100 + index)
        trained = copy.deepcopy(block).float()
        absmax = channel_absmax(block, self.ctx.family, task.inputs)
        found = LearnedBlock({}, {})
        for group in self.groups(block):
            self._prepare_(trained, block, group, absmax[group.name], found, generator)

        def begin_step(step: int) -> None:
            for shared in found.inputs.values():
                shared.begin_step()

        steps = 0 if self.ctx.bits.is_identity or not recipe.learn else recipe.steps
        groups = [
            {"params": transform_parameters(trained), "lr": recipe.lr_transform},
            {"params": clip_parameters(trained), "lr": recipe.lr_clip},
        ]
        self.curves[f"loss_block_{index}"] = train_block(
            trained, self.ctx.family, task, [{**g, "weight_decay": 0.0} for g in groups],
            optimizer=torch.optim.AdamW, steps=steps, generator=generator,
            floor=FLOOR, before_step=begin_step,
        )  # fmt: skip
        begin_step(steps)
        return found

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
        recipe, bits = self.recipe, self.ctx.bits
        linears = {n: linear_at(block, n) for n in group.linears}
        scale = None
        if recipe.scale and not group.modulation:
            scale = initial_scale(absmax, list(linears.values()), recipe.smoothing)
        shared = LearnedInput(
            absmax.numel(),
            activation_of(group, ActivationSpec(bits=bits.a)).bits,
            scale=scale,
            rotation="none" if group.modulation else recipe.rotation,
            clip=recipe.learn,
            generator=generator,
        ).to(self.ctx.device)
        found.inputs[group.name] = shared
        for name, linear in linears.items():
            learned = LearnedLinear(linear, shared, bits.w, clip=recipe.learn)
            found.linears[name] = learned.to(self.ctx.device)
            replace_module_(trained, name, found.linears[name])

    @torch.no_grad()
    def fold_and_round_(
        self, prefix: str, block: nn.Module, learned: LearnedBlock, inputs: Sequence[BlockInput]
    ) -> None:
        """Fold scales into their producers, round every weight in its learned basis, in place."""
        groups = self.groups(block)
        transforms = {g.name: _fold_(block, g, learned.inputs[g.name]) for g in groups}
        hessians = linear_hessians(block, self.ctx.family, groups, transforms, inputs)
        for group in groups:
            for name in group.linears:
                linear = linear_at(block, name)
                steps, hessian = transforms[group.name], hessians[name]
                layer = self._round_linear(linear, group, steps, learned, name, hessian)
                mapped = transformed_weight(linear.weight.float(), steps)
                error = output_error(mapped, layer.dequantized(), hessian)
                self.errors[f"{prefix}.{name}"] = error
                replace_module_(block, name, layer)

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
        if self.recipe.rounding == "gptq":
            codes = gptq(mapped, hessian, grid, weight.bits)
        return quantize_linear(linear, weight, activation, transforms=steps, grid=grid, codes=codes)


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
    weight = torch.stack([m.weight.detach().abs().amax(0) for m in linears]).amax(0)
    scale = absmax.clamp_min(1e-5) ** alpha / weight.clamp_min(1e-5) ** (1 - alpha)
    return scale.clamp(1e-5, 1e5)
