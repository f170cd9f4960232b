"""Teacher-forced errors: a quantized denoiser at the latents of the full-precision trajectory.

At every recorded step three passes are held against each other: the full-precision denoiser, the
quantized one, and each quantized block on the full-precision inputs of its block. The first two
differ by all that went before, the first and the last by what the block itself does.

A method may fold a channel scale into a layer whose consumer undoes it. The output of a value
projection is then compared after the best map for each channel, ``gain * y + offset``, found on a
few samples of the trajectory. A modulation is not compared then: it has one output a timestep, and
the map would take its rounding up with the scale; what it does shows in the error of its block.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from harness.models.block_input import Sample
from harness.models.families.base import target_linears
from harness.models.families.fold_targets import ModulationFold, ValueFold
from harness.quant.layers.layers import quantized_layers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.models.families.base import Family
    from harness.models.trajectories import CalibrationPool

FIT_SAMPLES = 8
FOLDED_GAIN, FOLDED_ERROR = 0.1, 4.0
"""A layer counts as folded where half of its channels have a gain that is off by more than the
first, and the map for each channel divides the error by more than the second: rounding alone does
neither."""

_LEAST_GAIN = 1e-3  # a channel that is nearly off says nothing about the other one's values

OWN, PREFIX = "own", "prefix"
ALL, DIRECTION, GUIDED = "all", "direction", "guided"


@dataclass(kw_only=True)
class Ratio:
    """A relative squared error that is added up: sum of ||difference||^2 over sum of ||exact||^2.

    Attributes:
        difference: Sum of squared differences.
        exact: Sum of squared exact values.
    """

    difference: float = 0.0
    exact: float = 0.0

    def add(self, found: Tensor, exact: Tensor) -> None:
        """Count one pair of tensors of one shape."""
        wide = exact.double()
        self.difference += float((found.double() - wide).square().sum())
        self.exact += float(wide.square().sum())

    @property
    def value(self) -> float:
        """The relative error; 0 where there is nothing to be relative to."""
        return self.difference / self.exact if self.exact else 0.0


def _ratios() -> defaultdict[tuple[str, int], Ratio]:
    return defaultdict(Ratio)


@dataclass(kw_only=True)
class Forced:
    """Errors by place and step, pooled over prompts.

    Attributes:
        layers: By (layer, step): output of a quantized linear whose block got exact inputs.
        blocks: By (``own`` or ``prefix``, block, step) joined as ``own:<block>``: output of a
            quantized block on exact inputs, and behind the quantized blocks before it.
        outputs: By (part, step): denoiser output; part is ``all``, the index of a branch,
            ``direction`` (conditional minus unconditional) or ``guided``.
        folded: Layers that were compared after a map for each channel.
        uncompared: Layers that were not compared, because a scale was folded into modulations.
        exact: By (prompt, step): the exact output of the conditional branch, on the CPU.
    """

    layers: dict[tuple[str, int], Ratio] = field(default_factory=_ratios)
    blocks: dict[tuple[str, int], Ratio] = field(default_factory=_ratios)
    outputs: dict[tuple[str, int], Ratio] = field(default_factory=_ratios)
    folded: tuple[str, ...] = ()
    uncompared: tuple[str, ...] = ()
    exact: dict[tuple[int, int], Tensor] = field(default_factory=dict)


@torch.no_grad()
def teacher_forced(
    exact: nn.Module,
    quantized: nn.Module,
    family: Family,
    pool: CalibrationPool,
    *,
    guidance: Sequence[float],
    progress: Callable[[float, str], None],
) -> Forced:
    """Walk the recorded trajectories with both denoisers.

    Args:
        exact: Full-precision denoiser.
        quantized: Quantized denoiser.
        family: Their family.
        pool: Trajectories of the full-precision sampler.
        guidance: Guidance scale of every step, for the error of the guided output.
        progress: Progress callback.
    """
    pair = _Pair(exact, quantized, family)
    pair.fit(pool)
    found = Forced(folded=tuple(pair.maps), uncompared=tuple(sorted(pair.uncompared)))
    device = next(exact.parameters()).device
    samples = list(pool.samples())
    for i, sample in enumerate(samples):
        call = pool.call(sample, device)
        outputs = pair.run(call.arguments, sample.step, found)
        _count_outputs(found, outputs, sample.step, call.branches, guidance[sample.step])
        found.exact[sample.prompt, sample.step] = outputs[0][-1].float().cpu()
        progress((i + 1) / len(samples), f"teacher-forced step {i + 1}/{len(samples)}")
    return found


def _count_outputs(
    found: Forced, outputs: tuple[Tensor, Tensor], step: int, branches: int, guidance: float
) -> None:
    """Errors of the denoiser output, whole and by guidance branch."""
    exact, quantized = outputs
    found.outputs[ALL, step].add(quantized, exact)
    if branches < 2:
        return
    mine, theirs = quantized.chunk(branches), exact.chunk(branches)
    for index in range(branches):
        found.outputs[str(index), step].add(mine[index], theirs[index])
    for part, scale in ((DIRECTION, None), (GUIDED, guidance)):
        a, b = (_combined(parts[0], parts[-1], scale) for parts in (mine, theirs))
        found.outputs[part, step].add(a, b)


def _combined(unconditional: Tensor, conditional: Tensor, scale: float | None) -> Tensor:
    """What guidance adds, or with a scale the guided output ``u + scale * (c - u)``."""
    direction = conditional.float() - unconditional.float()
    return direction if scale is None else unconditional.float() + scale * direction


class _Pair:
    """Two denoisers with hooks that compare them block by block."""

    def __init__(self, exact: nn.Module, quantized: nn.Module, family: Family) -> None:
        self.exact, self.quantized = exact, quantized
        self.blocks = family.blocks(exact)
        self.twins = dict(family.blocks(quantized))
        targets = set(target_linears(family, exact)) & set(quantized_layers(quantized))
        self.layers = {n: [t for t in sorted(targets) if t.startswith(f"{n}.")] for n in self.twins}
        self.suspects = {
            f"{name}.{linear}": (linear, isinstance(group.fold, ModulationFold))
            for name, block in self.blocks
            for group in family.groups(block)
            for linear in _folds_into(group.fold)
            if f"{name}.{linear}" in targets
        }
        self.maps: dict[str, tuple[Tensor, Tensor]] = {}
        self.uncompared: set[str] = set()

    def fit(self, pool: CalibrationPool) -> None:
        """Find the layers that a scale was folded into, and the map of those that can be compared.

        A method folds at the same place of every block, so the place counts as folded where most of
        its layers do; one folded modulation is taken for all of them.
        """
        if not self.suspects:
            return
        sums: dict[str, _Sums] = defaultdict(_Sums)
        steps = sorted({round(i) for i in _spaced(pool.steps, FIT_SAMPLES)})
        device = next(self.exact.parameters()).device
        for step in steps:
            arguments = pool.call(Sample(0, step), device).arguments
            self._compare(arguments, lambda name, mine, exact: sums[name].add(mine, exact))
        fits = {name: sums[name].fit() for name in self.suspects if name in sums}
        votes: dict[tuple[str, bool], list[bool]] = defaultdict(list)
        for name, (_, _, folded) in fits.items():
            votes[self.suspects[name]].append(folded)
        places = {place for place, found in votes.items() if 2 * sum(found) > len(found)}
        modulated = any(modulation for _, modulation in places)
        for name, (gain, offset, _) in fits.items():
            if self.suspects[name][1]:
                self.uncompared |= {name} if modulated else set()
            elif self.suspects[name] in places:
                self.maps[name] = gain, offset

    def run(self, arguments: dict[str, Any], step: int, found: Forced) -> tuple[Tensor, Tensor]:
        """One step with both; returns the exact and the quantized output."""

        def see(name: str, mine: Tensor, exact: Tensor) -> None:
            if name in self.uncompared:
                return
            if name in self.maps:
                gain, offset = self.maps[name]
                mine = (mine.double() - offset) / gain
            found.layers[name, step].add(mine, exact)

        def block(name: str, kind: str, mine: Any, exact: Any) -> None:
            for a, b in zip(_tensors(mine), _tensors(exact), strict=True):
                found.blocks[f"{kind}:{name}", step].add(a, b)

        return self._compare(arguments, see, block)

    def _compare(
        self,
        arguments: dict[str, Any],
        see: Callable[[str, Tensor, Tensor], None],
        block: Callable[[str, str, Any, Any], None] | None = None,
    ) -> tuple[Tensor, Tensor]:
        behind: dict[str, Any] = {}
        handles = [
            twin.register_forward_hook(_keep(behind, name)) for name, twin in self.twins.items()
        ]
        try:
            # First, so that a step policy has chosen before single blocks are run below.
            mine = _first(self.quantized(**arguments))
        finally:
            _remove(handles)
        for name, module in self.blocks:
            handles += self._watch(name, module, behind, see, block)
        try:
            exact = _first(self.exact(**arguments))
        finally:
            _remove(handles)
        return exact, mine

    def _watch(
        self,
        name: str,
        module: nn.Module,
        behind: dict[str, Any],
        see: Callable[[str, Tensor, Tensor], None],
        block: Callable[[str, str, Any, Any], None] | None,
    ) -> list[Any]:
        """Hooks that hold a block and its linears against their quantized twins."""
        outputs: dict[str, list[Tensor]] = defaultdict(list)
        twin = self.twins[name]

        def compare(
            _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], exact: Any
        ) -> None:
            mine: dict[str, list[Tensor]] = defaultdict(list)
            handles = [
                self.quantized.get_submodule(layer).register_forward_hook(_collect(mine, layer))
                for layer in self.layers[name]
            ]
            try:
                own = twin(*args, **kwargs)
            finally:
                _remove(handles)
            for layer, values in outputs.items():
                for a, b in zip(mine[layer], values, strict=True):
                    see(layer, a, b)
            outputs.clear()
            if block is not None:
                block(name, OWN, own, exact)
                block(name, PREFIX, behind.pop(name), exact)

        handles: list[Any] = [
            self.exact.get_submodule(layer).register_forward_hook(_collect(outputs, layer))
            for layer in self.layers[name]
        ]
        return [*handles, module.register_forward_hook(compare, with_kwargs=True)]


@dataclass(kw_only=True)
class _Sums:
    """What a line through (exact, quantized) needs, for each channel."""

    rows: int = 0
    moments: list[Tensor] = field(default_factory=list)

    def add(self, mine: Tensor, exact: Tensor) -> None:
        """Count the rows of ``[..., out_features]``."""
        x, y = exact.double().flatten(0, -2), mine.double().flatten(0, -2)
        now = [x.sum(0), y.sum(0), (x * x).sum(0), (x * y).sum(0), (y * y).sum(0)]
        held = self.moments or [torch.zeros_like(value) for value in now]
        self.moments = [a + b for a, b in zip(held, now, strict=True)]
        self.rows += len(x)

    def fit(self) -> tuple[Tensor, Tensor, bool]:
        """Least squares ``y = gain * x + offset``; gain 1 and offset 0 where x does not vary."""
        x, y, xx, xy, yy = (moment / self.rows for moment in self.moments)
        spread = xx - x * x
        fits = spread > 1e-9 * xx.clamp_min(1e-30)
        gain = torch.where(fits, (xy - x * y) / torch.where(fits, spread, 1.0), 1.0)
        gain = torch.where(gain.abs() < _LEAST_GAIN, 1.0, gain)
        offset = torch.where(gain == 1.0, 0.0, y - gain * x)
        plain = (yy - 2 * xy + xx).sum()
        left = (
            yy + gain**2 * xx + offset**2 - 2 * (gain * xy + offset * y - gain * offset * x)
        ).sum()
        off = bool((gain - 1).abs().median() > FOLDED_GAIN)
        return gain, offset, off and bool(plain > FOLDED_ERROR * left)


def _folds_into(fold: Any) -> tuple[str, ...]:
    if isinstance(fold, ModulationFold):
        return (fold.linear,)
    return fold.linears if isinstance(fold, ValueFold) else ()


def _spaced(steps: int, count: int) -> list[float]:
    count = min(count, steps)
    return [i * (steps - 1) / max(1, count - 1) for i in range(count)]


def _keep(into: dict[str, Any], name: str) -> Callable[..., None]:
    def hook(_: nn.Module, args: Any, output: Any) -> None:
        del args
        into[name] = output

    return hook


def _collect(into: dict[str, list[Tensor]], name: str) -> Callable[..., None]:
    def hook(_: nn.Module, args: Any, output: Tensor) -> None:
        del args
        into[name].append(output.clone())  # what follows may write into it (rotary embedding)

    return hook


def _remove(handles: list[Any]) -> None:
    while handles:
        handles.pop().remove()


def _tensors(output: Any) -> list[Tensor]:
    return list(output) if isinstance(output, tuple) else [output]


def _first(output: Any) -> Tensor:
    found: Tensor = output[0] if isinstance(output, tuple) else output.sample
    return found
