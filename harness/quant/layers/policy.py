"""Step policies: which form of its switched linears a denoiser uses at each sampling step.

A policy sees what the denoiser sees: its timestep before a call, its output after it. It therefore
works in any pipeline, and is stored with the artifact as data.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from harness.models.families.parts import parts_of
from harness.quant.layers.switch import SwitchedLinear

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_ATTRIBUTE = "_step_policy"
_EXPERTS = "experts"


class StepPolicy:
    """Chooses by step. A trajectory begins where the timestep rises; equal ones are one step.

    Attributes:
        kind: How the artifact names the class.
        trace: Index chosen at each step of the current trajectory.
    """

    kind: ClassVar[str]

    def __init__(self) -> None:
        self.trace: list[int] = []
        self._timestep = -math.inf
        self._seen = False

    def begin(self) -> None:
        """Forget the trajectory before."""
        self.trace = []
        self._timestep = -math.inf
        self._seen = False

    def before(self, timestep: float) -> int:
        """Index to use in a call; a new step where the timestep differs from the last call's."""
        if timestep > self._timestep:
            self.begin()
        if timestep != self._timestep:
            self._timestep, self._seen = timestep, False
            self.trace.append(self.choose(len(self.trace), timestep))
        return self.trace[-1]

    def after(self, output: Tensor) -> None:
        """See the output of a call, ``[branches, ...]``.

        A step counts once: by its first call, and in that by the last entry of the batch. That is
        the conditional branch both of pipelines that stack the branches and of those that call
        twice.
        """
        if not self._seen:
            self._seen = True
            self.observe(output[-1].detach().float())

    @abstractmethod
    def choose(self, step: int, timestep: float) -> int:
        """Index for a step that begins."""

    def observe(self, output: Tensor) -> None:
        """See the denoiser's output of the step, one branch."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Arguments of the constructor, JSON only."""


class TimestepPolicy(StepPolicy):
    """Form i while the timestep is above ``bounds[i]``, the last form below all.

    Args:
        bounds: Descending timesteps.
    """

    kind = "timestep"

    def __init__(self, bounds: Sequence[float]) -> None:
        super().__init__()
        if list(bounds) != sorted(bounds, reverse=True):
            raise ValueError(f"bounds {bounds} do not descend")
        self.bounds = tuple(float(b) for b in bounds)

    def choose(self, step: int, timestep: float) -> int:
        """Count the bounds that the timestep has passed."""
        del step
        return sum(timestep <= bound for bound in self.bounds)

    def facts(self) -> dict[str, Any]:
        """The bounds."""
        return {"bounds": list(self.bounds)}


class DeltaPolicy(StepPolicy):
    """Delta-guided bit switching of DVD-Quant (arXiv 2505.18663).

    Form ``low`` while the relative L1 changes of the output since the last ``high`` step sum up to
    less than ``delta``. The first two steps have no history and are high.

    Args:
        delta: Threshold.
        low: Index of the form with fewer bits.
        high: Index of the form with more bits.
    """

    kind = "delta"

    def __init__(self, delta: float, low: int = 0, high: int = 1) -> None:
        super().__init__()
        self.delta, self.low, self.high = float(delta), low, high
        self._sum = 0.0
        self._last: Tensor | None = None

    def begin(self) -> None:
        """Forget the trajectory before."""
        super().begin()
        self._sum, self._last = 0.0, None

    def choose(self, step: int, timestep: float) -> int:
        """Low while little has changed."""
        del timestep
        if step >= 2 and self._sum < self.delta:
            return self.low
        self._sum = 0.0
        return self.high

    def observe(self, output: Tensor) -> None:
        """Add ||F_t - F_(t-1)||_1 / ||F_(t-1)||_1."""
        if self._last is not None:
            self._sum += relative_change(output, self._last)
        self._last = output

    def facts(self) -> dict[str, Any]:
        """Threshold and forms."""
        return {"delta": self.delta, "low": self.low, "high": self.high}


def relative_change(output: Tensor, before: Tensor) -> float:
    """L1(F, t) = ||F_t - F_(t-1)||_1 / ||F_(t-1)||_1 (DVD-Quant), tensors of one shape."""
    wide, last = output.float(), before.float()
    return float((wide - last).abs().sum() / last.abs().sum().clamp_min(1e-12))


def delta_schedule(changes: Sequence[float], delta: float) -> list[int]:
    """Steps that ``DeltaPolicy`` would choose: 1 for high, 0 for low.

    Args:
        changes: ``changes[j]`` is the relative change between the outputs of steps j and j - 1;
            the first is not used.
        delta: Threshold.
    """
    chosen: list[int] = []
    since = 0
    for step in range(len(changes)):
        if step >= 2 and sum(changes[max(since, 1) : step]) < delta:
            chosen.append(0)
        else:
            chosen.append(1)
            since = step
    return chosen


_KINDS: dict[str, type[StepPolicy]] = {c.kind: c for c in (TimestepPolicy, DeltaPolicy)}


def build_policy(kind: str, facts: Mapping[str, Any]) -> StepPolicy:
    """Rebuild a stored policy.

    Raises:
        ValueError: The kind is not one this version knows.
    """
    if kind not in _KINDS:
        raise ValueError(f"unknown step policy {kind!r}; known: {sorted(_KINDS)}")
    return _KINDS[kind](**facts)


def attach_policy_(transformer: nn.Module, policy: StepPolicy) -> None:
    """Let a policy drive the switched linears of a denoiser, in place; replaces one before."""
    fresh = policy_of(transformer) is None
    setattr(transformer, _ATTRIBUTE, policy)
    if fresh:
        transformer.register_forward_pre_hook(_before, with_kwargs=True)
        transformer.register_forward_hook(_after)


def policy_of(transformer: nn.Module) -> StepPolicy | None:
    """The policy of a denoiser, None where it has none."""
    found: StepPolicy | None = getattr(transformer, _ATTRIBUTE, None)
    return found


def policies_of(transformer: nn.Module) -> dict[str, StepPolicy]:
    """The policies of a denoiser's networks, by the names of those that have one."""
    found = {name: policy_of(part) for name, part in parts_of(transformer).items()}
    return {name: policy for name, policy in found.items() if policy is not None}


def stored_policy(transformer: nn.Module) -> dict[str, Any] | None:
    """What an artifact says of a denoiser's policy; None where it has none.

    Returns:
        ``kind`` and ``facts``. Of networks that take turns each has its own: the kind is then
        ``experts``, the facts are theirs by name.
    """
    told = {n: {"kind": p.kind, "facts": p.facts()} for n, p in policies_of(transformer).items()}
    return told.get("", {"kind": _EXPERTS, "facts": told} if told else None)


def build_policies(stored: Mapping[str, Any]) -> dict[str, StepPolicy]:
    """Rebuild what ``stored_policy`` told, by the names of the networks.

    Raises:
        ValueError: A kind is not one this version knows.
    """
    every = stored["facts"] if stored["kind"] == _EXPERTS else {"": stored}
    return {name: build_policy(one["kind"], one["facts"]) for name, one in every.items()}


def _before(transformer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    del args
    policy = policy_of(transformer)
    if policy is None:
        raise RuntimeError("the denoiser has lost its step policy")
    active = policy.before(float(torch.as_tensor(kwargs["timestep"]).float().max()))
    for module in transformer.modules():
        if isinstance(module, SwitchedLinear):
            module.active = active


def _after(transformer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    del args
    policy = policy_of(transformer)
    if policy is not None:
        policy.after(output[0] if isinstance(output, tuple) else output.sample)
