"""The flow shift of a scheduler: what it is called, whether it has an effect, how it is set.

A shift moves the steps of a flow towards the noisy end. Each class of diffusers names it its own
way, and reads it under conditions that its config states.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from diffusers import DiffusionPipeline

_BY_SHIFT = (
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
)
_BY_FLOW_SHIFT = (
    "UniPCMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler",
    "SASolverScheduler",
)


def shift_parameter(kind: str, config: Mapping[str, Any]) -> tuple[str, str]:
    """What the shift of a scheduler is called.

    Args:
        kind: Class of the scheduler.
        config: Its config.

    Returns:
        The parameter and an empty text, or an empty text and why there is none.
    """
    if kind not in (*_BY_SHIFT, *_BY_FLOW_SHIFT):
        return "", "it has none"
    if config.get("use_dynamic_shifting"):
        return "", "it computes its own from the size of the clip (use_dynamic_shifting)"
    if kind in _BY_SHIFT:
        return "shift", ""
    if not config.get("use_flow_sigmas"):
        return "", "it reads one for flows only (use_flow_sigmas is not set)"
    return "flow_shift", ""


def shift_text(kind: str, config: Mapping[str, Any], asked: float | None) -> tuple[str, str]:
    """The shift that a scheduler samples with, in words, and why there is none."""
    parameter, why = shift_parameter(kind, config)
    if not parameter:
        return "none", why
    return f"{float(config.get(parameter, 1.0) if asked is None else asked):g}", ""


def check_shift(kind: str, config: Mapping[str, Any], asked: float | None) -> None:
    """Refuse a shift that a scheduler would not read.

    Args:
        kind: Class of the scheduler.
        config: Its config.
        asked: The shift; None asks for nothing.

    Raises:
        UsageError: It has none, or none that has an effect.
    """
    _, why = shift_parameter(kind, config)
    if asked is not None and why:
        raise UsageError(
            f"flow_shift = {asked:g} has no effect on a {kind}: {why}",
            "leave flow_shift out of [gen]",
        )


def set_flow_shift_(pipeline: DiffusionPipeline, shift: float | None) -> None:
    """Give a pipeline a scheduler with another shift; None leaves it as it is.

    Raises:
        UsageError: The scheduler reads no shift.
    """
    scheduler = pipeline.scheduler
    kind, config = type(scheduler).__name__, scheduler.config
    check_shift(kind, config, shift)
    parameter, _ = shift_parameter(kind, config)
    if shift is not None and config.get(parameter) != shift:
        pipeline.scheduler = type(scheduler).from_config(config, **{parameter: shift})
