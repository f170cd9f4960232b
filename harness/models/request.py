"""What ``[gen]`` asks of a model: settings with changes, held to what the model can do."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness.errors import UsageError
from harness.models.admission import PIPELINES
from harness.models.description import SECOND_DENOISER
from harness.models.families import family_by_name
from harness.models.geometry import check_gen
from harness.models.scheduler import check_shift

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.models.description import Description
    from harness.spec import GenSpec


def changed(own: GenSpec, changes: Mapping[str, Any]) -> GenSpec:
    """Settings of a model with changes.

    Where guidance is switched off, a recommended negative prompt and the scale of a second denoiser
    go, since nothing reads them then.
    """
    gen = replace(own, **changes)
    if gen.guidance <= 1 and "negative_prompt" not in changes:
        gen = replace(gen, negative_prompt="")
    if gen.guidance <= 1 and "guidance_2" not in changes:
        gen = replace(gen, guidance_2=None)
    return gen


def check_request(description: Description, gen: GenSpec) -> None:
    """Refuse settings that the model cannot be run with.

    Raises:
        UsageError: A size, a number of frames or a length of text cannot be made; nothing reads
            the negative prompt, the flow shift or the second guidance scale.
        HarnessError: A config cannot be meant.
    """
    check_gen(description, gen)
    if "scheduler" in description.components:
        scheduler = description.components["scheduler"]
        check_shift(scheduler.kind, scheduler.config, gen.flow_shift)
    _check_second_scale(description, gen)
    if not gen.negative_prompt:
        return
    family = PIPELINES[description.pipeline]
    if family_by_name(family).guidance == "embedded":
        raise UsageError(
            f"a {family} model runs one guidance branch, which reads no negative prompt",
            "leave negative_prompt out of [gen]",
        )
    if gen.guidance <= 1:
        raise UsageError(
            f"guidance {gen.guidance:g} runs one branch, which reads no negative prompt",
            "set guidance above 1, or leave negative_prompt out of [gen]",
        )


def _check_second_scale(description: Description, gen: GenSpec) -> None:
    """Refuse a guidance scale of a second denoiser that nothing reads.

    Raises:
        UsageError: There is no such denoiser, or guidance is off, which is off for both.
    """
    if gen.guidance_2 is None:
        return
    if SECOND_DENOISER not in description.components:
        raise UsageError(
            f"guidance_2 = {gen.guidance_2:g} is of a second denoiser, and model "
            f"'{description.name}' has one",
            "leave guidance_2 out of [gen]",
        )
    if gen.guidance <= 1:
        raise UsageError(
            f"guidance {gen.guidance:g} runs one branch, with both denoisers",
            "set guidance above 1, or leave guidance_2 out of [gen]",
        )
