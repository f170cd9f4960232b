"""Capturing what a block sees: its arguments at chosen samples, and the inputs of its linears."""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from harness.models.families.base import Family
    from harness.quant.calibration import CalibrationPool, Sample


class _Caught(Exception):
    """Stops the forward pass once the first block was reached."""


@dataclass(kw_only=True)
class BlockInput:
    """Arguments of a block at one sample.

    Attributes:
        sample: Prompt and step.
        streams: The streams that blocks update, by argument name, each
            ``[branches, tokens, width]``.
        fixed: The other arguments, the same for every block.
        rows: Batch rows of a stream that belong to one guidance branch: 1, except where a family
            folds frames or positions into the batch.
    """

    sample: Sample
    streams: dict[str, Tensor]
    fixed: dict[str, Any] = field(default_factory=dict)
    rows: int = 1

    def with_streams(self, streams: dict[str, Tensor]) -> BlockInput:
        """Return the same sample with other stream values."""
        return replace(self, streams=streams)

    @property
    def branches(self) -> int:
        """Guidance branches stacked in the batch."""
        return self._batch() // self.rows

    def _batch(self) -> int:
        return next(iter(self.streams.values())).shape[0]

    def branch(self, index: int) -> BlockInput:
        """Keep one guidance branch."""
        branches, batch = self.branches, self._batch()

        def take(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(take(part) for part in value)
            if not isinstance(value, Tensor) or value.dim() == 0:
                return value
            if value.shape[0] not in (branches, batch):
                return value
            own = value.shape[0] // branches
            return value[index * own : (index + 1) * own]

        return replace(
            self,
            streams={k: take(v) for k, v in self.streams.items()},
            fixed={k: take(v) for k, v in self.fixed.items()},
        )

    def in_float32(self) -> BlockInput:
        """The same sample with every floating point tensor in single precision, for training."""

        def widen(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(widen(v) for v in value)
            floating = isinstance(value, Tensor) and value.is_floating_point()
            return value.float() if floating else value

        return replace(
            self,
            streams={k: widen(v) for k, v in self.streams.items()},
            fixed={k: widen(v) for k, v in self.fixed.items()},
        )


def named_arguments(
    block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Arguments of a block call by name.

    What falls into ``*args`` or ``**kwargs`` is left out: a block that has these ignores them.
    """
    signature = inspect.signature(block.forward)
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = {p.name for p in signature.parameters.values() if p.kind not in variadic}
    taken = signature.bind(*args, **kwargs).arguments
    return {k: v for k, v in taken.items() if k in named}


@torch.no_grad()
def each_first_block_input(
    transformer: nn.Module, family: Family, pool: CalibrationPool, samples: Sequence[Sample]
) -> Iterator[BlockInput]:
    """Run the denoiser up to its first block and give that block's arguments, sample by sample.

    Args:
        transformer: The denoiser.
        family: Its facts.
        pool: Recorded trajectories.
        samples: Which candidates.
    """
    _, first = family.blocks(transformer)[0]
    device = next(transformer.parameters()).device
    caught: list[dict[str, Any]] = []

    def grab(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append(named_arguments(block, args, kwargs))
        raise _Caught

    for sample in samples:
        call = pool.call(sample, device)
        # ahead of the block's own hooks: they change the arguments again when the block is run
        handle = first.register_forward_pre_hook(grab, with_kwargs=True, prepend=True)
        try:
            transformer(**call.arguments)
        except _Caught:
            pass
        finally:
            handle.remove()
        arguments = caught.pop()
        yield BlockInput(
            sample=sample,
            streams={k: v.clone() for k, v in arguments.items() if k in family.streams},
            fixed={k: v for k, v in arguments.items() if k not in family.streams},
            rows=arguments[family.video_stream].shape[0] // call.branches,
        )


BRANCHES = ("both", "alternate", "cond")


def branch_turns(samples: Sequence[Sample], branches: int, rule: str) -> list[int | None]:
    """Which guidance branch every sample keeps; None for all of them.

    Raises:
        ValueError: The rule is unknown.
    """
    if rule == "both":
        return [None] * len(samples)
    if rule == "cond":
        return [branches - 1] * len(samples)
    if rule == "alternate":
        # not in turn along the list: with an even number of samples a prompt, that would give each
        # timestep one branch only
        order = sorted({sample.step for sample in samples})
        turns = {step: rank for rank, step in enumerate(order, start=1)}
        taken: list[int | None] = []
        for sample in samples:
            taken.append(turns[sample.step] % branches)
            turns[sample.step] += 1
        return taken
    raise ValueError(f"unknown branch rule {rule!r}; known: {', '.join(BRANCHES)}")


def run_block(block: nn.Module, family: Family, given: BlockInput) -> dict[str, Tensor]:
    """Run a block; return the updated streams by name."""
    out = block(**given.streams, **given.fixed)
    out = out if isinstance(out, tuple) else (out,)
    return dict(zip(family.streams, out, strict=True))


@contextmanager
def observing(
    block: nn.Module, linears: Sequence[str], see: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Call ``see(name, input)`` whenever one of the named linears of a block runs."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def call(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            see(name, args[0].detach())

        return call

    handles = [block.get_submodule(n).register_forward_pre_hook(hook(n)) for n in linears]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
