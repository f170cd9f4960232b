"""Training with little memory: activations are computed again on the way back, part by part.

What a step keeps of a block are the inputs of its parts: norms, attentions, feed-forwards. Each
part is run again when its gradient is due, the feed-forward a stretch of tokens at a time, so that
only one part's activations are there at once.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness.models.families.base import Family

ROWS = 2048
"""Tokens computed at once where an operation treats each token by itself."""


def recomputed(
    function: Callable[..., Tensor], x: Tensor, *others: Tensor | None, by_row: bool = True
) -> Tensor:
    """``function(x, *others)``, keeping the arguments alone and computing again for the gradient.

    Args:
        function: Differentiable, of tensors and None alone; with the shape and dtype of ``x``.
        x: ``[..., tokens, channels]``.
        others: Further arguments, each the same for all tokens.
        by_row: The function treats each token by itself: at most ``ROWS`` are computed at once.
    """
    rows = ROWS if by_row else 0
    run = cast("Callable[..., Tensor]", _Recomputed.apply)
    return run(function, rows, x, *others)


class _Recomputed(torch.autograd.Function):
    """A function of rows that is computed a second time on the way back, in parts both times."""

    @staticmethod
    def forward(
        ctx: Any, function: Callable[..., Tensor], rows: int, x: Tensor, *others: Tensor | None
    ) -> Tensor:
        ctx.function, ctx.rows = function, rows
        ctx.save_for_backward(x, *others)
        flat = x.reshape(-1, x.shape[-1])
        if not rows or flat.shape[0] <= rows:
            return function(x, *others).view_as(x)
        out = torch.empty_like(flat)
        for part in _parts(flat.shape[0], rows):
            out[part] = function(flat[part], *others)
        return out.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *others = ctx.saved_tensors
        wanted = ctx.needs_input_grad[2:]
        flat, grad = x.reshape(-1, x.shape[-1]), grads[0].reshape(-1, x.shape[-1])
        grad_x = torch.empty_like(flat) if wanted[0] else None
        sums: list[Tensor | None] = [None] * len(others)
        for part in _parts(flat.shape[0], ctx.rows or flat.shape[0]):
            given: list[Any] = [
                None if value is None else value.detach().requires_grad_(want)
                for value, want in zip([flat[part], *others], wanted, strict=True)
            ]
            with torch.enable_grad():
                out = ctx.function(*given)
            leaves = [i for i, want in enumerate(wanted) if want]
            found = torch.autograd.grad(out, [given[i] for i in leaves], grad[part])
            for i, value in zip(leaves, found, strict=True):
                if i == 0 and grad_x is not None:
                    grad_x[part] = value
                elif i:
                    before = sums[i - 1]
                    sums[i - 1] = value if before is None else before.add_(value)
        return None, None, None if grad_x is None else grad_x.view(x.shape), *sums


def _parts(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(count, start + size))


@contextmanager
def recomputing(block: nn.Module, family: Family) -> Iterator[None]:
    """Run the parts of a block so that each keeps its inputs alone, while entered.

    Outputs and gradients stay what they are: the same operations on the same numbers, those of a
    feed-forward in stretches of ``ROWS`` tokens.

    Args:
        block: Its direct submodules that hold parameters are the parts.
        family: Which of them are feed-forwards.
    """
    feed_forwards = feed_forward_parts(block, family)
    parts = [
        (name, part)
        for name, part in block.named_children()
        if next(part.parameters(), None) is not None and _callable(part)
    ]
    before: dict[str, Any] = {name: part.__dict__.get("forward") for name, part in parts}
    for name, part in parts:
        part.forward = _kept_inputs(part, part.forward, by_token=name in feed_forwards)
    try:
        yield
    finally:
        for name, part in parts:
            if before[name] is None:
                del part.forward
            else:
                part.forward = before[name]


def feed_forward_parts(block: nn.Module, family: Family) -> set[str]:
    """Direct submodules of a block that hold a feed-forward and nothing else that is quantized."""
    roles: dict[str, set[str]] = {}
    for group in family.groups(block):
        for linear in group.linears:
            roles.setdefault(linear.partition(".")[0], set()).add(group.role)
    both = {"feed_forward_in", "feed_forward_out"}
    return {name for name, found in roles.items() if found == both}


def _callable(part: nn.Module) -> bool:
    return not isinstance(part, nn.ModuleList | nn.ModuleDict | nn.ParameterList)


def _kept_inputs(
    part: nn.Module, forward: Callable[..., Any], *, by_token: bool
) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(
            forward, *args, use_reentrant=False, preserve_rng_state=part.training, **kwargs
        )

    def call(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        if by_token and len(args) == 1 and not kwargs and args[0].shape[-2] > ROWS:
            return torch.cat([run(stretch) for stretch in args[0].split(ROWS, -2)], -2)
        return run(*args, **kwargs)

    return call
