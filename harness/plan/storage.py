"""Bytes of a denoiser's weights under a plain weight scheme, from its config alone.

What is counted is what ``harness.quant.layers.stored`` writes for a method that rounds and adds
nothing, as ``rtn`` does: packed codes, steps, zero points, and every other parameter as it stays.
Transforms and low-rank branches are a method's own and not counted. Nor are the headers of the
tensor files and the manifest, whose bytes depend on names and on what a method reports.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.bits import IDENTITY_WIDTH
from harness.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from harness.models.inventory import CountedLinear, Inventory

STEP_BYTES = 2
"""Of a step as artifacts hold it: float16. A linear one of whose steps lies outside its normal
range (below 2^-14, as that of a row of zeros) holds all of its steps in float32; no config tells
which linears those are."""
ZERO_BYTES = 1
"""Of a zero point: uint8."""

BLOCKS, TOKENS, EVERY = "blocks", "blocks without modulation", "every linear"
"""Which linears are rounded: all of the blocks; those of the blocks that read tokens; also those
outside the blocks, which no method here rounds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scheme:
    """How weights are stored.

    Attributes:
        bits: Width of the codes; 16 rounds nothing.
        group: Input channels that share a step; 0 for one step for each output channel.
        symmetric: Grid without zero point.
        linears: Which are rounded: ``BLOCKS``, ``TOKENS`` or ``EVERY``.
        step_bytes: Of a step.
    """

    bits: int
    group: int = 0
    symmetric: bool = True
    linears: str = BLOCKS
    step_bytes: int = STEP_BYTES

    @property
    def label(self) -> str:
        """``w4``, ``w4 group 64``."""
        return f"w{self.bits}{f' group {self.group}' if self.group else ''}"

    def rounds(self, linear: CountedLinear) -> bool:
        """Whether a linear's weight is rounded."""
        if self.bits == IDENTITY_WIDTH:
            return False
        if self.linears == EVERY:
            return True
        return linear.target and (self.linears == BLOCKS or not linear.modulation)


@dataclass(frozen=True, kw_only=True, slots=True)
class Storage:
    """Bytes by kind.

    Attributes:
        codes: Packed codes.
        steps: Steps of the weights.
        zeros: Zero points.
        kept: Everything that is not rounded, biases of rounded linears among it.
        plain: All of the denoiser at 16 bits.
    """

    codes: int
    steps: int
    zeros: int
    kept: int
    plain: int

    @property
    def total(self) -> int:
        """All that is stored."""
        return self.codes + self.steps + self.zeros + self.kept

    @property
    def ratio(self) -> float:
        """How many times smaller than at 16 bits."""
        return self.plain / self.total


def storage(found: Inventory, scheme: Scheme) -> Storage:
    """Bytes of a denoiser under a scheme.

    Args:
        found: The denoiser.
        scheme: How its weights are stored.

    Raises:
        UsageError: A group does not divide the input of a linear that is rounded.
    """
    from harness.quant.layers.pack import packed_bytes

    rounded = [linear for linear in found.linears if scheme.rounds(linear)]
    _check_groups(rounded, scheme.group)
    grids = sum(
        linear.out_features * (linear.in_features // (scheme.group or linear.in_features))
        for linear in rounded
    )
    weights = {linear.weight for linear in rounded}
    return Storage(
        codes=sum(
            packed_bytes(linear.out_features * linear.in_features, scheme.bits)
            for linear in rounded
        ),
        steps=grids * scheme.step_bytes,
        zeros=0 if scheme.symmetric else grids * ZERO_BYTES,
        kept=sum(kept.size for name, kept in found.tensors.items() if name not in weights),
        plain=2 * found.values,
    )


def _check_groups(rounded: Iterable[CountedLinear], group: int) -> None:
    for linear in rounded:
        if group and linear.in_features % group:
            raise UsageError(
                f"groups of {group} do not divide the {linear.in_features} inputs of "
                f"'{linear.weight}'",
                "choose a group that divides every width, or 0 for one step an output channel",
            )
