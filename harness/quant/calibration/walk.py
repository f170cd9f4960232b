"""Walking a denoiser block by block: the skeleton of every calibrated method.

One block and one sample are in memory at a time; the samples lie on disk. Where the calibration
keeps what it has finished (``QuantContext.kept``), every block is kept when it is done, and a walk
that was ended goes on behind the last one.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch

from harness.method import SIMULATED, QuantContext, QuantReport
from harness.models.block_input import BlockInput
from harness.models.families.base import linear_at, target_groups
from harness.models.offload import resident
from harness.quant.calibration.capture import branch_turns, each_first_block_input, run_block
from harness.quant.calibration.finished import FinishedBlocks, block_content, content_digests
from harness.quant.calibration.hessian import linear_hessians, output_error
from harness.quant.calibration.samples import shortage, uniform_samples
from harness.quant.calibration.spill import FixedArguments, SpilledInputs
from harness.quant.layers.apply import layer_reports
from harness.quant.layers.layers import QuantizedLayer, replace_module_
from harness.quant.layers.linear import QuantLinear, transformed_weight

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import Tensor, nn

    from harness.models.block_input import Sample
    from harness.models.families.base import Family, InputGroup


@dataclass(frozen=True, kw_only=True, slots=True)
class WalkedBlock:
    """A block with what it is fitted on. The sequences read from disk at every access.

    Attributes:
        index: Place in the order of execution.
        name: Qualified name.
        block: The block; the consumer replaces its linears in place.
        groups: Its input groups, without modulation where the options leave that out.
        inputs: Its inputs in the full-precision model.
        targets: Its outputs there.
        given: ``inputs``, or what the quantized blocks before it deliver.
        walk: The walk that it is a stage of.
    """

    index: int
    name: str
    block: nn.Module
    groups: Sequence[InputGroup]
    inputs: Sequence[BlockInput]
    targets: Sequence[BlockInput]
    given: Sequence[BlockInput]
    walk: Walk

    def progress(self, share: float, text: str = "") -> None:
        """Say how far the work on this block is.

        Args:
            share: Of this block's work, 0 to 1.
            text: What is done at the moment, behind what the walk says itself.
        """
        self.walk.say(self.index + min(0.99, share), text)  # what follows training is its too

    def linears(self) -> Iterator[tuple[str, nn.Linear, InputGroup]]:
        """Every linear that is to be replaced: name relative to the block, layer, input group."""
        for group in self.groups:
            for name in group.linears:
                yield name, linear_at(self.block, name), group

    def hessians(
        self, transforms: Mapping[str, Sequence[nn.Module]] | None = None
    ) -> dict[str, Tensor]:
        """Second moments of what the linears read of ``given``, as ``linear_hessians`` has them.

        Args:
            transforms: Input transforms by group; absent groups have none.
        """
        family, steps = self.walk.ctx.family, transforms or {}
        with self.walk.ctx.part("statistics"):
            return linear_hessians(self.block, family, self.groups, steps, self.given)

    def replace_(
        self,
        name: str,
        layer: QuantizedLayer,
        *,
        hessian: Tensor | None = None,
        error: float | None = None,
    ) -> None:
        """Put a quantized layer in the place of a linear, in place.

        Args:
            name: Relative to the block.
            layer: What stands there from now on.
            hessian: Of the layer's transformed inputs; the report then has its output error.
            error: Relative output error, where the method measured it itself.
        """
        linear = linear_at(self.block, name)
        if hessian is not None and isinstance(layer, QuantLinear) and layer.grid is not None:
            mapped = transformed_weight(linear.weight.detach().float(), list(layer.transforms))
            error = output_error(mapped, layer.dequantized(), hessian)
        if error is not None:
            self.walk.errors[f"{self.name}.{name}"] = error
        self.walk.widths.add(linear.in_features)
        self.walk.alive()
        replace_module_(self.block, name, layer)


class Walk:
    """Iterates over the blocks of a denoiser; the consumer quantizes each before asking for more.

    What is not given here is read from the method's options, where they have it.

    Args:
        transformer: The denoiser, all its blocks still in full precision.
        ctx: Context of the method.
        samples: (prompt, timestep) samples to calibrate on; None takes the options' ``samples`` at
            equally spaced ``timesteps``.
        branches: Guidance branches of a sample: ``both``, ``alternate`` or ``cond``.
        inputs: ``fp`` gives every block the inputs of the full-precision model; ``quantized`` adds
            those that the quantized blocks before it deliver.
        verb: What the progress line says is done to a block.
        prepare: Called with a block and its full-precision inputs before its targets are computed;
            may fold scales in the block, in place, which leaves its function as it was.
        state: What the method carries from block to block, by name: dictionaries, lists, sets,
            generators, or objects with ``state_dict`` and ``load_state_dict`` (a module outside
            the blocks that the method changes, say). It is kept with the blocks and filled again,
            in place, before the walk goes on. What a method changes within a block needs no state.

    Attributes:
        ctx: Context of the method.
        samples: The samples.
        errors: Relative output errors by qualified name of the linear, where measured.
        widths: Input widths of the linears replaced so far.
    """

    def __init__(
        self,
        transformer: nn.Module,
        ctx: QuantContext,
        samples: Sequence[Sample] | None = None,
        *,
        branches: str | None = None,
        inputs: str | None = None,
        verb: str = "quantizing",
        prepare: Callable[[nn.Module, Sequence[BlockInput]], None] | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        options = ctx.options
        self._notes: tuple[str, ...] = ()
        if samples is None:
            samples = uniform_samples(ctx.calibration, options.samples, options.timesteps)
            self._notes = shortage(samples, options.samples)
        inputs = inputs or getattr(options, "inputs", "fp")
        if inputs not in ("fp", "quantized"):
            raise ValueError(f"inputs is {inputs!r}, expected fp or quantized")
        self.ctx, self.samples = ctx, list(samples)
        self.errors: dict[str, float] = {}
        self.widths: set[int] = set()
        self._transformer = transformer
        self._rule = branches or str(getattr(options, "branches", "alternate"))
        self._modulation = getattr(options, "modulation", "w")
        self._separate = inputs == "quantized"
        self._verb = verb
        self._prepare = prepare
        self._started = time.perf_counter()
        self._branches = 0
        self._state = dict(state or {})
        self._said = (0.0, verb)

    def __iter__(self) -> Iterator[WalkedBlock]:
        """Yield every block in order that is not finished yet."""
        kept = self.ctx.kept
        if kept is not None:
            finished = FinishedBlocks(
                kept, f"walk-{self._verb}", self._transformer, self._state, self.ctx.device
            )
            yield from self._walk(finished.folder, finished)
            return
        with tempfile.TemporaryDirectory(prefix="harness-", dir=self.ctx.scratch) as folder:
            yield from self._walk(Path(folder), None)

    def carry(self, **state: Any) -> None:
        """Add to the ``state``, where it is made from what needs the walk."""
        self._state |= state

    def say(self, blocks: float, text: str = "") -> None:
        """Tell the user how far the walk is.

        Args:
            blocks: Blocks done, with the share of the one at work.
            text: What is done at the moment.
        """
        named = self.ctx.family.blocks(self._transformer)
        at = f"{self._verb} {named[min(int(blocks), len(named) - 1)][0]}"
        self._said = (blocks / len(named), f"{at}: {text}" if text else at)
        self.ctx.progress(*self._said)

    def alive(self) -> None:
        """Tell the run that the walk goes on; called at every sample and at every linear."""
        self.ctx.progress(*self._said)

    def _walk(self, folder: Path, finished: FinishedBlocks | None) -> Iterator[WalkedBlock]:
        blocks = self.ctx.family.blocks(self._transformer)
        self._fixed = FixedArguments(folder / "fixed", self.ctx.device)
        told = None if finished is None else finished.restore_()
        start = 0 if told is None else int(told["finished"])
        if told is not None:
            self.errors |= told["errors"]
            self.widths |= set(told["widths"])
            self._branches = told["branches"]
        if start == len(blocks):
            return
        inputs, given = self._start(folder, start, told)
        for index, (name, block) in enumerate(blocks[start:], start=start):
            self.say(index)
            before = {} if finished is None else content_digests(block)
            with resident(block, self.ctx.device):
                if self._prepare is not None:
                    self._prepare(block, inputs)
                targets = self._spill(folder / f"{index}-targets", self._run(block, inputs))
                yield WalkedBlock(
                    index=index, name=name, block=block,
                    groups=target_groups(self.ctx.family, block, self._modulation),
                    inputs=inputs, targets=targets, given=given, walk=self,
                )  # fmt: skip
                passed = targets
                if self._separate:
                    passed = self._spill(folder / f"{index}-given", self._run(block, given))
            if finished is not None:
                content = block_content(block, name, before)
                finished.commit(index, content, self._told(index, targets, passed))
            spent = {id(used): used for used in (_spilled(inputs), _spilled(given))}
            for used in spent.values():
                used.clear()
            inputs, given = self._advanced(index, targets, passed)
        _spilled(inputs).clear()
        _spilled(given).clear()
        shutil.rmtree(self._fixed.folder, ignore_errors=True)

    def _start(
        self, folder: Path, start: int, told: dict[str, Any] | None
    ) -> tuple[Sequence[BlockInput], Sequence[BlockInput]]:
        """Inputs of the first block that is not finished, in full precision and as given."""
        if told is None:
            inputs = self._spill(folder / "first", self._first())
            self._branches = inputs[0].branches
            return inputs, inputs
        last = start - 1
        targets = self._opened(folder / f"{last}-targets").restore(told["targets"])
        passed = targets
        if self._separate:
            passed = self._opened(folder / f"{last}-given").restore(told["given"])
        return self._advanced(last, targets, passed)

    def _advanced(
        self, index: int, targets: SpilledInputs, passed: SpilledInputs
    ) -> tuple[_Advanced, _Advanced]:
        """Outputs of a block as the inputs of the next one, in full precision and as given."""
        exact = _Advanced(self._transformer, self.ctx.family, index, targets)
        if passed is targets:
            return exact, exact
        return exact, _Advanced(self._transformer, self.ctx.family, index, passed)

    def _told(self, index: int, targets: SpilledInputs, passed: SpilledInputs) -> dict[str, Any]:
        """What the walk needs to go on behind a block."""
        return {
            "finished": index + 1,
            "errors": self.errors,
            "widths": sorted(self.widths),
            "branches": self._branches,
            "targets": targets.facts(),
            "given": [] if passed is targets else passed.facts(),
        }

    def _first(self) -> Iterator[BlockInput]:
        turns: list[int | None] = []
        family, pool = self.ctx.family, self.ctx.calibration
        caught = each_first_block_input(self._transformer, family, pool, self.samples)
        for i, given in enumerate(caught):
            turns = turns or branch_turns(self.samples, given.branches, self._rule)
            turn = turns[i]
            self.alive()
            yield given if turn is None else given.branch(turn)

    def _run(self, block: nn.Module, inputs: Sequence[BlockInput]) -> Iterator[BlockInput]:
        for given in inputs:
            with torch.no_grad():
                out = run_block(block, self.ctx.family, given)
            yield given.with_streams(out)

    def _spill(self, folder: Path, inputs: Iterable[BlockInput]) -> SpilledInputs:
        shutil.rmtree(folder, ignore_errors=True)  # what an ended attempt left of this block
        folder.mkdir()
        with self.ctx.part("block outputs"):
            return self._opened(folder).extend(inputs)

    def _opened(self, folder: Path) -> SpilledInputs:
        return SpilledInputs(folder, self.ctx.device, fixed=self._fixed, read=self.alive)

    def report(
        self,
        *,
        passes: int = 0,
        steps: int = 0,
        notes: Sequence[str] = (),
        curves: Mapping[str, list[float]] | None = None,
        mixed: str = "",
    ) -> QuantReport:
        """Report of a method that walked all blocks.

        Args:
            passes: Passes of the samples through every block that the consumer added to the
                walk's own (targets, and the quantized prefix where it is asked for).
            steps: Training steps a block, one sample each.
            notes: What a reader of the table must know, besides a shortage of the samples that the
                walk took by itself.
            curves: Named series.
            mixed: Why widths differ from the nominal label.
        """
        pool = self.ctx.calibration
        own = 1 + self._separate
        spent = ((own + passes) * len(self.samples) + steps) * self._branches
        return QuantReport(
            execution=SIMULATED,
            layers=layer_reports(self._transformer, self.errors),
            calibration_clips=len(pool.prompts),
            calibration_forwards=pool.forwards + spent,
            calibration_samples=len(self.samples),
            seconds=time.perf_counter() - self._started,
            notes=(*self._notes, *notes),
            curves=dict(curves or {}),
            mixed=mixed,
        )


class _Advanced(Sequence[BlockInput]):
    """Outputs of block ``index`` seen as the inputs of the next one."""

    def __init__(
        self, transformer: nn.Module, family: Family, index: int, outputs: SpilledInputs
    ) -> None:
        self.outputs = outputs
        self._transformer, self._family, self._index = transformer, family, index

    def __len__(self) -> int:
        return len(self.outputs)

    @overload
    def __getitem__(self, index: int) -> BlockInput: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[BlockInput]: ...
    def __getitem__(self, index: int | slice) -> BlockInput | Sequence[BlockInput]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        out = self.outputs[index]
        return self._family.advance(self._transformer, self._index, out, out.streams)


def _spilled(inputs: Sequence[BlockInput]) -> SpilledInputs:
    found = inputs.outputs if isinstance(inputs, _Advanced) else inputs
    if not isinstance(found, SpilledInputs):
        raise TypeError(f"inputs are a {type(found).__name__}")
    return found
