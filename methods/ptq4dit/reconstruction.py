"""Block reconstruction: AdaRound and learned activation steps against the full-precision block."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from harness.api import IDENTITY_WIDTH, QuantContext
from harness.quant import (
    ActivationSpec,
    Affine,
    BlockTask,
    WeightSpec,
    percentile_grid,
    quantize_linear,
    replace_module_,
    sample_values,
    stored_grid,
    train_block,
    transformed_weight,
)
from methods.ptq4dit.adaround import AdaRoundLinear, StaticActivation, annealed_beta

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from harness.quant import WalkedBlock

PERCENTILES = (0.999, 0.9999, 0.99999)  # PTQ4DiT's released code, range initialisation


class BlockReconstruction:
    """The trainable form of a block, and what becomes of it.

    Args:
        ctx: Context of the method.
        walked: The block, balanced.
        online: Input transforms that stay online, by group.

    Attributes:
        activations: Static per-tensor quantizer of every input group.
        linears: Trainable form of every linear.
    """

    def __init__(
        self, ctx: QuantContext, walked: WalkedBlock, online: Mapping[str, Sequence[nn.Module]]
    ) -> None:
        self.ctx, self.walked, self.online = ctx, walked, online
        with ctx.part("statistics"):
            self.activations = self.static_activations()
        self.linears = {
            name: self.adaround_linear(linear, online[group.name], self.activations[group.name])
            for name, linear, group in walked.linears()
        }

    def static_activations(self) -> dict[str, StaticActivation]:
        """Quantizer of every input group, its range by percentile search."""
        bits, walked = self.ctx.bits.a, self.walked
        values = sample_values(walked.block, self.ctx.family, walked.given, self.online)
        found = {}
        for group in walked.groups:
            grid = None
            if bits < IDENTITY_WIDTH and not group.modulation:
                rows = percentile_grid(values[group.name][None], bits, PERCENTILES)
                grid = Affine(
                    rows.scale.squeeze(), None if rows.zero is None else rows.zero.squeeze()
                )
            found[group.name] = StaticActivation(grid, bits).to(self.ctx.device)
        return found

    def adaround_linear(
        self, linear: nn.Linear, transforms: Sequence[nn.Module], activation: StaticActivation
    ) -> AdaRoundLinear:
        """Trainable form of a linear on its per-output-channel percentile grid."""
        bits = self.ctx.bits.w
        weight = transformed_weight(linear.weight.detach().float(), transforms)
        grid = None
        if bits < IDENTITY_WIDTH:
            grid = stored_grid(percentile_grid(weight, bits, PERCENTILES))
        return AdaRoundLinear(weight, linear.bias, grid, bits, activation, transforms)

    def train(self, weights: Sequence[dict[str, Tensor]] | None) -> list[float]:
        """Learn rounding and activation steps (as Q-Diffusion; details from the code).

        Args:
            weights: Loss weights of the tokens of every sample, None weighs all alike.

        Returns:
            The reconstruction loss of every step.
        """
        options, walked = self.ctx.options, self.walked
        trained = copy.deepcopy(walked.block).float()
        for name, layer in self.linears.items():
            replace_module_(trained, name, layer)
        rounded = [layer for layer in self.linears.values() if layer.rounding is not None]
        factor = self.regulariser_factor()

        def regulariser(step: int) -> Tensor | None:
            for layer in rounded:
                layer.begin_step()
            beta = annealed_beta(
                step / options.iterations, options.warmup, options.beta_start, options.beta_stop
            )
            if beta is None or not rounded:
                return None
            return factor * torch.stack([layer.regulariser(beta) for layer in rounded]).sum()

        rounding = {
            "params": [layer.rounding for layer in rounded],
            "lr": options.lr_rounding,
            "floor": 1.0,  # the code anneals the activation steps alone
        }
        steps = 0 if self.ctx.bits.is_identity else options.iterations
        scales = [a.scale for a in self.activations.values() if a.scale is not None]
        with self.ctx.part("training"):
            return train_block(
                trained, self.ctx.family,
                BlockTask(inputs=walked.given, targets=walked.targets, weights=weights),
                [rounding, {"params": scales, "lr": options.lr_step}],
                optimizer=torch.optim.Adam, steps=steps,
                generator=self.ctx.generator(salt=100 + walked.index), before_step=regulariser,
                progress=walked.progress,
            )  # fmt: skip

    def regulariser_factor(self) -> float:
        """Weight of the rounding regulariser beside the loss as it is computed here.

        The code sums the error over tokens and averages over channels; here it is summed over
        channels and averaged over tokens, so the regulariser is scaled by channels / tokens to keep
        their proportion.
        """
        streams = self.walked.given[0].streams
        tokens = sum(value.shape[1] for value in streams.values())
        channels = streams[self.ctx.family.video_stream].shape[-1]
        weight: float = self.ctx.options.round_weight
        return weight * channels / tokens

    def replace_(self) -> None:
        """Put the learned linears into the block, in place."""
        for name, linear, group in self.walked.linears():
            layer = quantize_linear(
                linear, WeightSpec(bits=self.ctx.bits.w, symmetric=False),
                self.activation(self.activations[group.name].limits()),
                transforms=self.online[group.name],
                grid=self.linears[name].grid, codes=self.linears[name].codes(),
            )  # fmt: skip
            self.walked.replace_(name, layer)

    def activation(self, limits: tuple[float, float] | None) -> ActivationSpec:
        """Static quantizer of a learned range; none leaves the activation alone."""
        if limits is None:
            return ActivationSpec(bits=IDENTITY_WIDTH)
        low, high = limits
        return ActivationSpec(
            bits=self.ctx.bits.a, symmetric=False, static_low=low, static_high=high
        )
