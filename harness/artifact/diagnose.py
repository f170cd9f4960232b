"""Diagnose: where and when a quantized denoiser departs from the full-precision one.

Everything is the relative squared error ||found - exact||^2 / ||exact||^2, added up over the
prompts before the division. Nothing here judges a clip; it says which layer, which step and which
guidance branch to look at, and whether errors of one step grow in the next.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from harness.artifact.teacher_forced import (
    ALL,
    DIRECTION,
    FIT_SAMPLES,
    GUIDED,
    OWN,
    PREFIX,
    Forced,
    Ratio,
    teacher_forced,
)
from harness.models.block_input import Sample
from harness.models.experts import FIRST, SECOND, network_at, replace_denoiser_
from harness.models.families import family_by_name
from harness.models.sample import denoise
from harness.models.trajectories import record_pool
from harness.quant.layers.artifact import load_artifact_
from harness.quant.layers.policy import policy_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from diffusers import DiffusionPipeline
    from torch import Tensor, nn

    from harness.models.trajectories import CalibrationPool
    from harness.spec import GenSpec, Prompt

PASSES = 3  # full precision, quantized, quantized block by block


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerError:
    """Output of a quantized linear whose block got exact inputs.

    Attributes:
        folded: Compared after a map for each channel, because the method folded a scale into it.
    """

    layer: str
    step: int
    timestep: float
    error: float
    folded: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockError:
    """Output of a quantized block.

    Attributes:
        own: On the full-precision inputs of the block.
        prefix: Behind the quantized blocks before it, at the same latents.
    """

    block: str
    step: int
    timestep: float
    own: float
    prefix: float


@dataclass(frozen=True, kw_only=True, slots=True)
class StepError:
    """One denoising step.

    Attributes:
        form: Forms that the step policy chose in the sampler's own run, over the prompts, joined by
            ``/``; empty without a policy.
        forced: Denoiser output at the full-precision latents, all branches.
        unconditional: The same, that branch alone; None without stacked or paired branches.
        conditional: Likewise.
        direction: Of conditional minus unconditional, what guidance multiplies.
        guided: Of the guided output at the sampler's scale.
        free: Denoiser output of the conditional branch at the latents that the quantized sampler
            itself arrived at.
        latent: Latent after the step in the quantized sampler's own run.
    """

    step: int
    timestep: float
    form: str
    forced: float
    unconditional: float | None
    conditional: float | None
    direction: float | None
    guided: float | None
    free: float
    latent: float


@dataclass(frozen=True, kw_only=True, slots=True)
class CountError:
    """Final latent of the sampler's own run with another number of steps."""

    steps: int
    latent: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    """All that was found about one artifact.

    Attributes:
        uncompared: Modulation linears whose output a folded scale changes by design.
    """

    layers: tuple[LayerError, ...]
    blocks: tuple[BlockError, ...]
    steps: tuple[StepError, ...]
    counts: tuple[CountError, ...]
    uncompared: tuple[str, ...] = ()

    @property
    def growth(self) -> float | None:
        """Free-running over teacher-forced output error, over the last third of the steps.

        Near 1 the error of a step does not depend on those before; far above, it accumulates. None
        where the teacher-forced error is zero.
        """
        last = self.steps[-max(1, len(self.steps) // 3) :]
        forced = sum(s.forced if s.conditional is None else s.conditional for s in last)
        return sum(s.free for s in last) / forced if forced else None


def denoiser_calls(prompts: int, steps: int, artifacts: int, counts: Sequence[int]) -> int:
    """Calls of the denoiser, all guidance branches in one, that a diagnosis takes."""
    fit = PASSES * min(FIT_SAMPLES, steps)
    one = prompts * steps * (1 + PASSES) + fit
    return prompts * steps + artifacts * one + prompts * sum(counts) * (1 + artifacts)


def other_counts(counts: Sequence[int], gen: GenSpec) -> list[int]:
    """Step counts that need trajectories of their own."""
    return [n for n in dict.fromkeys(counts) if n != gen.steps]


def diagnose(
    pipeline: DiffusionPipeline,
    artifacts: Sequence[Path],
    prompts: Sequence[Prompt],
    gen: GenSpec,
    *,
    family: str,
    counts: Sequence[int],
    folder: Path,
    progress: Callable[[float, str], None],
) -> list[Diagnosis]:
    """Diagnose artifacts of one model on the same trajectories.

    Args:
        pipeline: Full-precision pipeline; its denoiser is not changed.
        artifacts: Artifact folders.
        prompts: What is sampled; the noise of prompt i is the same for every artifact.
        gen: Generation settings.
        family: Family of the denoiser.
        counts: Numbers of sampling steps to compare; may be empty.
        folder: Existing empty folder for the recorded trajectories.
        progress: Progress callback; the fraction starts anew with each part of the work.
    """
    exact_pool = _record(pipeline, prompts, gen, folder / "exact", progress)
    finals = {
        n: _finals(pipeline, prompts, dataclasses.replace(gen, steps=n))
        for n in other_counts(counts, gen)
    }
    found = []
    for i, artifact in enumerate(artifacts):
        twin = _quantized(pipeline, artifact)
        forced = teacher_forced(
            pipeline.transformer, twin.transformer, family_by_name(family), exact_pool,
            guidance=_scales(exact_pool, gen), progress=progress,
        )  # fmt: skip
        outputs = _Outputs()
        handle = twin.transformer.register_forward_hook(outputs, with_kwargs=True)
        try:
            free_pool = _record(twin, prompts, gen, folder / f"free-{i}", progress)
        finally:
            handle.remove()
        steps = _steps(exact_pool, free_pool, forced, outputs)
        own = {n: _finals(twin, prompts, dataclasses.replace(gen, steps=n)) for n in finals}
        own[gen.steps] = [free_pool.latent(Sample(p, gen.steps)) for p in range(len(prompts))]
        exact = {gen.steps: [exact_pool.latent(Sample(p, gen.steps)) for p in range(len(prompts))]}
        found.append(
            Diagnosis(
                layers=_layers(forced, exact_pool),
                blocks=_blocks(forced, exact_pool),
                steps=steps,
                counts=_counts(counts, own, exact | finals),
                uncompared=forced.uncompared,
            )
        )
    return found


def _scales(pool: CalibrationPool, gen: GenSpec) -> list[float]:
    """Guidance scale of every step; the second of two experts may have its own."""
    second = gen.guidance if gen.guidance_2 is None else gen.guidance_2
    served = pool.parts or (FIRST,) * pool.steps
    return [second if part == SECOND else gen.guidance for part in served]


def _quantized(pipeline: DiffusionPipeline, artifact: Path) -> DiffusionPipeline:
    """A pipeline that shares everything but the denoiser."""
    twin = copy.copy(pipeline)
    transformer = copy.deepcopy(pipeline.transformer)
    load_artifact_(transformer, artifact)
    replace_denoiser_(twin, transformer)
    return twin


def _record(
    pipeline: DiffusionPipeline,
    prompts: Sequence[Prompt],
    gen: GenSpec,
    folder: Path,
    progress: Callable[[float, str], None],
) -> CalibrationPool:
    folder.mkdir()
    return record_pool(pipeline, prompts, gen, seed=0, folder=folder, progress=progress)


def _finals(pipeline: DiffusionPipeline, prompts: Sequence[Prompt], gen: GenSpec) -> list[Tensor]:
    """Final latents of the sampler's own run, from noise of the same seeds for every pipeline."""
    found = []
    for i, prompt in enumerate(prompts):
        last: list[Tensor] = []

        def keep(step: int, latents: Tensor, last: list[Tensor] = last) -> None:
            del step
            last[:] = [latents]

        denoise(pipeline, prompt.text, gen, seed=1_000_000 + i, on_step=keep)
        found.append(last[0].cpu())
    return found


class _Outputs:
    """Forward hook that keeps the conditional output of every step of every trajectory.

    The form that a step policy chose is kept beside it.

    Of the calls at one timestep the first counts, and of its batch the last entry: that is the
    conditional branch of samplers that stack the branches and of those that call twice.
    """

    def __init__(self) -> None:
        self.trajectories: list[list[Tensor]] = []
        self.forms: list[list[int]] = []
        self._last = float("-inf")

    def __call__(
        self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        del args
        timestep = float(torch.as_tensor(kwargs["timestep"]).float().max())
        policy = policy_of(network_at(denoiser, timestep))
        if timestep > self._last or not self.trajectories:
            self.trajectories.append([])
            self.forms.append([])
        if timestep != self._last or not self.trajectories[-1]:
            out = output[0] if isinstance(output, tuple) else output.sample
            self.trajectories[-1].append(out[-1].detach().float().cpu())
            self.forms[-1] += [] if policy is None else [policy.trace[-1]]
        self._last = timestep


def _steps(
    exact: CalibrationPool, free: CalibrationPool, forced: Forced, outputs: _Outputs
) -> tuple[StepError, ...]:
    rows = []
    for step, timestep in enumerate(exact.timesteps):
        output, latent = Ratio(), Ratio()
        for prompt in range(len(exact.prompts)):
            output.add(outputs.trajectories[prompt][step], forced.exact[prompt, step])
            after = Sample(prompt, step + 1)
            latent.add(free.latent(after), exact.latent(after))
        parts = {
            part: forced.outputs[part, step].value if (part, step) in forced.outputs else None
            for part in ("0", str(exact.branches - 1), DIRECTION, GUIDED)
        }
        rows.append(
            StepError(
                step=step,
                timestep=timestep,
                form="/".join(str(forms[step]) for forms in outputs.forms if forms),
                forced=forced.outputs[ALL, step].value,
                unconditional=parts["0"],
                conditional=parts[str(exact.branches - 1)],
                direction=parts[DIRECTION],
                guided=parts[GUIDED],
                free=output.value,
                latent=latent.value,
            )
        )
    return tuple(rows)


def _layers(forced: Forced, pool: CalibrationPool) -> tuple[LayerError, ...]:
    return tuple(
        LayerError(
            layer=layer,
            step=step,
            timestep=pool.timesteps[step],
            error=ratio.value,
            folded=layer in forced.folded,
        )
        for (layer, step), ratio in forced.layers.items()
    )


def _blocks(forced: Forced, pool: CalibrationPool) -> tuple[BlockError, ...]:
    names = dict.fromkeys(k[len(OWN) + 1 :] for k, _ in forced.blocks if k.startswith(f"{OWN}:"))
    return tuple(
        BlockError(
            block=name,
            step=step,
            timestep=timestep,
            own=forced.blocks[f"{OWN}:{name}", step].value,
            prefix=forced.blocks[f"{PREFIX}:{name}", step].value,
        )
        for step, timestep in enumerate(pool.timesteps)
        for name in names
        if (f"{OWN}:{name}", step) in forced.blocks  # of two experts one ran
    )


def _counts(
    counts: Sequence[int], own: dict[int, list[Tensor]], exact: dict[int, list[Tensor]]
) -> tuple[CountError, ...]:
    rows = []
    for n in dict.fromkeys(counts):
        ratio = Ratio()
        for mine, theirs in zip(own[n], exact[n], strict=True):
            ratio.add(mine, theirs)
        rows.append(CountError(steps=n, latent=ratio.value))
    return tuple(rows)
