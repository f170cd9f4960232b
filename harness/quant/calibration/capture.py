"""Capturing what a block sees: its arguments at chosen samples, and the inputs of its linears."""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor, nn

from harness.models.block_input import BlockInput
from harness.options import Branches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from harness.models.block_input import Sample
    from harness.models.families.base import Family
    from harness.models.trajectories import CalibrationPool


class _Caught(Exception):
    """Stops the forward pass once the first block was reached."""


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
    raise ValueError(f"unknown branch rule {rule!r}; known: {', '.join(get_args(Branches))}")


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
