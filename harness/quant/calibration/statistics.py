"""Statistics of the inputs of a block's linears over calibration samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from harness.quant.calibration.capture import observing, run_block
from harness.quant.calibration.hessian import Hessian

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from harness.models.block_input import BlockInput
    from harness.models.families.base import Family, InputGroup

VALUES_KEPT = 1 << 13
"""Values of one input kept for percentile searches, evenly spaced over the tensor."""


@torch.no_grad()
def _over_groups(
    block: nn.Module,
    family: Family,
    inputs: Sequence[BlockInput],
    see: Callable[[str, BlockInput, Tensor], None],
) -> None:
    """Run the block on every sample; call ``see(group, sample, input)`` for each input group."""
    groups = {linear: group for group in family.groups(block) for linear in group.observed}
    parts: dict[str, list[Tensor]] = {}

    def keep(linear: str, x: Tensor) -> None:
        group = groups[linear]
        found = parts.setdefault(group.name, [])
        found.append(x.flatten(0, -2) if group.split else x)
        if len(found) == len(group.observed):
            see(group.name, current[0], torch.cat(found) if group.split else x)
            found.clear()

    current: list[BlockInput] = []
    with observing(block, list(groups), keep):
        for given in inputs:
            current[:] = [given]
            run_block(block, family, given)


def _peak(x: Tensor) -> Tensor:
    """Maximum over tokens of |x_j|, ``[in_features]``."""
    return x.reshape(-1, x.shape[-1]).abs().amax(0).float()


def channel_absmax(
    block: nn.Module, family: Family, inputs: Sequence[BlockInput]
) -> dict[str, Tensor]:
    """Mean over samples of the per-channel maximum over tokens.

    Returns:
        ``[in_features]`` by input group.
    """
    sums: dict[str, Tensor] = {}

    def see(group: str, given: BlockInput, x: Tensor) -> None:
        sums[group] = sums[group] + _peak(x) if group in sums else _peak(x)

    _over_groups(block, family, inputs, see)
    return {name: total / len(inputs) for name, total in sums.items()}


def channel_absmax_by_step(
    block: nn.Module, family: Family, inputs: Sequence[BlockInput]
) -> dict[str, Tensor]:
    """Per-channel maximum over tokens and samples, for each sampling step that occurs.

    Returns:
        ``[steps that occur, in_features]`` by input group, steps ascending.
    """
    peaks: dict[str, dict[int, Tensor]] = {}

    def see(group: str, given: BlockInput, x: Tensor) -> None:
        steps = peaks.setdefault(group, {})
        before = steps.get(given.sample.step)
        steps[given.sample.step] = _peak(x) if before is None else torch.maximum(before, _peak(x))

    _over_groups(block, family, inputs, see)
    return {name: torch.stack([steps[t] for t in sorted(steps)]) for name, steps in peaks.items()}


def _stride(count: int, width: int) -> int:
    """Stride that keeps about ``VALUES_KEPT`` values and visits every channel."""
    stride = max(1, count // VALUES_KEPT)
    while math.gcd(stride, width) > 1:
        stride += 1
    return stride


def sample_values(
    block: nn.Module,
    family: Family,
    inputs: Sequence[BlockInput],
    transforms: Mapping[str, Sequence[nn.Module]],
) -> dict[str, Tensor]:
    """Values of every (transformed) input, thinned evenly.

    Args:
        block: The block.
        family: Its facts.
        inputs: Samples.
        transforms: Input transforms by group; absent groups have none.

    Returns:
        ``[values]`` by input group.
    """
    found: dict[str, list[Tensor]] = {}

    def see(group: str, given: BlockInput, x: Tensor) -> None:
        for transform in transforms.get(group, ()):
            x = transform(x)
        flat = x.reshape(-1)
        stride = _stride(flat.numel(), x.shape[-1])
        found.setdefault(group, []).append(flat[::stride].float())

    _over_groups(block, family, inputs, see)
    return {name: torch.cat(parts) for name, parts in found.items()}


@dataclass(kw_only=True, slots=True)
class InputSummary:
    """What is kept of an input over the calibration samples.

    Attributes:
        peak: Maximum over all tokens of |x_j|, ``[in_features]``.
        total: Sum over all tokens of |x_j|, ``[in_features]``.
        count: Tokens seen.
        parts: Kept tokens of each call, ``[kept, in_features]``.
        hessian: Second moment over all tokens, None if not asked for.
    """

    peak: Tensor
    total: Tensor
    count: int = 0
    parts: list[Tensor]
    hessian: Hessian | None

    def tokens(self) -> Tensor:
        """The kept tokens, ``[kept, in_features]``."""
        return torch.cat(self.parts)

    def second_moment(self) -> Tensor:
        """The Hessian, float64 ``[in_features, in_features]``.

        Raises:
            ValueError: None was kept.
        """
        if self.hessian is None:
            raise ValueError("no second moment was kept")
        return self.hessian.matrix()

    def add(self, x: Tensor, keep: int, generator: torch.Generator) -> None:
        """Take in ``[tokens, in_features]``, keeping ``keep`` tokens drawn without replacement."""
        size = x.abs()
        self.peak = torch.maximum(self.peak, size.amax(0))
        self.total = self.total + size.sum(0)
        self.count += x.shape[0]
        if keep:
            # drawn, not every n-th: a stride could fall in with the width of the token grid
            drawn = torch.randperm(x.shape[0], generator=generator)[:keep].sort().values
            self.parts.append(x[drawn.to(x.device)].clone())
        if self.hessian is not None:
            self.hessian.add(x)


@torch.no_grad()
def summarise_inputs(
    block: nn.Module,
    family: Family,
    groups: Sequence[InputGroup],
    inputs: Sequence[BlockInput],
    *,
    tokens: int,
    second_moment: bool,
    generator: torch.Generator,
) -> dict[str, InputSummary]:
    """Run a block on every sample and summarise the inputs of its linears, in one pass.

    Args:
        block: Full-precision block.
        family: Its facts.
        groups: Groups of interest.
        inputs: Block inputs.
        tokens: Tokens of each input kept over all samples, about; 0 keeps none.
        second_moment: Keep Hessians.
        generator: Draws the tokens.

    Returns:
        Summaries by name of the linear; linears that read the same tensor share one.
    """
    observed = [linear for group in groups for linear in group.observed]
    keep = -(-tokens // len(inputs))
    found: dict[str, InputSummary] = {}

    def see(linear: str, x: Tensor) -> None:
        rows = x.reshape(-1, x.shape[-1]).float()
        if linear not in found:
            width, device = rows.shape[1], rows.device
            zeros = torch.zeros(width, device=device)
            hessian = Hessian(width, device) if second_moment else None
            found[linear] = InputSummary(peak=zeros, total=zeros, parts=[], hessian=hessian)
        found[linear].add(rows, keep, generator)

    with observing(block, observed, see):
        for given in inputs:
            run_block(block, family, given)
    return {
        linear: found[linear if group.split else group.linears[0]]
        for group in groups
        for linear in group.linears
    }
