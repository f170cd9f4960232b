"""What a plan will take: time from what the store's journal remembers, disk from the settings."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.errors import InfraError
from harness.models.table import BUNDLED, transformer_parameters
from harness.plan.fit import model_sizes
from harness.plan.history import history, recent
from harness.plan.memory import BYTES
from harness.score.vbench_judge import PREFIX
from harness.score.vbench_scorer import expected_s
from harness.score.vbench_stage import TASK

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from harness.plan.cells import PlannedCell
    from harness.plan.history import History
    from harness.plan.memory import Sizes
    from harness.plan.plan import Plan
    from harness.spec import GenSpec
    from harness.store.store import Store

WORKER_START_S = 8.0  # imports of torch and diffusers, 7.6 and 8.6 s seen on a two-core server
TEXT_S = 0.1  # of one text, before any was timed
_TEXT_WIDTH = 4096  # of T5-XXL, UMT5-XXL and Llama 8B, which the supported models have
_LATENT_SHARE = 0.1  # final latents beside raw frames, generously
_ARTIFACT_BYTES_PER_PARAMETER = 4.0  # every layer kept at float32: the most an artifact can take
_RESERVE_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What is left to do.

    Attributes:
        seconds: Wall time; None while nothing like it was ever timed here.
        work_s: By task id: seconds of its worker, the weights of the progress bar.
        disk_bytes: Most that the store will grow, scratch of calibrations counted in.
        copied_bytes: Most that the run folder will take where it cannot link to the store.
    """

    seconds: float | None
    work_s: dict[str, float]
    disk_bytes: int
    copied_bytes: int = 0


def estimate(plan: Plan, store: Store) -> Estimate:
    """Estimate a plan."""
    taken = history(store)
    known = True
    work: dict[str, float] = {}
    for planned in plan.cells:
        if planned.done:
            continue
        clip_s, quantize_s = _rates(planned, taken)
        if clip_s is None or quantize_s is None:
            known = False
            clip_s, quantize_s = clip_s or 1.0, quantize_s or 10.0
        seconds = WORKER_START_S + planned.missing_clips * clip_s
        work[planned.cell.id] = seconds + (quantize_s if planned.needs_quantizing else 0.0)
    for name, text in plan.texts.items():
        text_s = recent(taken, f"text:{text.model.name}") or TEXT_S
        work[name] = WORKER_START_S + len(text.texts) * text_s
    for name, pool in plan.pools.items():
        clip_s = _model_clip_s(pool.model.name, taken)
        known = known and clip_s is not None
        work[name] = WORKER_START_S + len(pool.prompts) * (clip_s or 1.0)
    spread = max([sum(work.values()) / plan.jobs, *work.values()], default=0.0)
    made = bool(work)
    if plan.scores:
        judge_s = _judge_s(plan, taken)
        known = known and judge_s is not None
        judges = plan.judges
        each = WORKER_START_S + (judge_s or 1.0 * plan.scores.total()) / judges
        work |= {f"{TASK}{i + 1}": each for i in range(judges)}
        spread += each
    if made and plan.experiment.execution.measure:
        real = sum(c.facts.unquantized for c in plan.cells)
        rate = max((_model_clip_s(m.name, taken) or 0.0 for m in plan.models), default=0.0)
        spread += WORKER_START_S + 4 * real * rate
    return Estimate(
        seconds=spread if known else None,
        work_s=work,
        disk_bytes=_disk_bytes(plan, store.root / "facts") if work else 0,
        copied_bytes=_copied_bytes(plan) if work else 0,
    )


def plan_line(plan: Plan, guess: Estimate) -> str:
    """The first line of a run."""
    found = plan.clips - plan.missing_clips
    cells = f"{len(plan.cells)} cells"
    skipped = sum(bool(c.unsupported) for c in plan.cells)
    if skipped:
        cells += f" ({skipped} unsupported)"
    if not guess.work_s:
        return f"{cells}, {plan.clips} clips found, nothing to make"
    took = "time unknown until the first clip" if guess.seconds is None else _about(guess.seconds)
    clips = f"{plan.missing_clips} clips to make, {found} found"
    judged = f", {plan.scores.total()} VBench values" if plan.scores else ""
    return f"{cells}, {clips}{judged}, {took}"


def check_space(plan: Plan, guess: Estimate, store: Store, folder: Path) -> None:
    """Hold the estimate against what is free.

    Raises:
        InfraError: It will not fit.
    """
    del plan
    # On one file system the run folder links to what lies in the store.
    apart = store.root.stat().st_dev != folder.stat().st_dev
    for place, size in ((store.root, guess.disk_bytes), (folder, guess.copied_bytes * apart)):
        free = shutil.disk_usage(place).free
        need = size + _RESERVE_BYTES if guess.work_s else 0
        if free < need:
            raise InfraError(
                f"'{place}' has {free / 1e6:.0f} MB free, the run may need {need / 1e6:.0f} MB",
                "free space, run `harness gc`, or set HARNESS_HOME and --out to another disk",
            )


def _about(seconds: float) -> str:
    if seconds < 90:
        return f"about {max(10, round(seconds, -1)):.0f} s"
    if seconds < 5400:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3600:.1f} h"


def _model_clip_s(model: str, taken: History) -> float | None:
    if (seconds := recent(taken, f"model:{model}")) is not None:
        return seconds
    return BUNDLED[model].clip_s if model in BUNDLED else None


def _judge_s(plan: Plan, taken: History) -> float | None:
    """Seconds of judging on one worker; None where a dimension was never timed."""
    judge = plan.vbench.judge
    frames = max(gen.frames for gen in plan.gens.values())
    total = 0.0
    for dimension, count in plan.scores.items():
        rate = recent(taken, f"score:{PREFIX}{dimension}")
        if rate is None and judge is not None and judge.device.id == "cpu":
            rate = expected_s(dimension, frames)
        if rate is None:
            return None
        total += rate * count
    return total


def _rates(planned: PlannedCell, taken: History) -> tuple[float | None, float | None]:
    """Seconds a clip and seconds of quantizing of one row."""
    model = planned.cell.model.name
    clip = recent(taken, f"clip:{planned.cell.id}") or _model_clip_s(model, taken)
    label = planned.cell.method.label
    quantize = recent(taken, f"artifact:{model}--{label}")
    if quantize is None:
        quantize = recent(taken, f"artifact:{label}")  # of another model, or of an older journal
    if quantize is None and model in BUNDLED:
        quantize = planned.facts.quick_s
    return clip, 0.0 if planned.facts.unquantized else quantize


def _disk_bytes(plan: Plan, cache: Path) -> int:
    total = 0.0
    scratch: list[float] = []
    sizes = {model.name: model_sizes(plan, model, cache) for model in plan.models}
    for planned in plan.cells:
        if planned.done:
            continue
        total += planned.missing_clips * clip_bytes(planned.cell.gen)
        if planned.needs_quantizing:
            parameters = transformer_parameters(planned.cell.model)
            total += parameters * _ARTIFACT_BYTES_PER_PARAMETER
            scratch.append(scratch_bytes(planned.facts.options, sizes[planned.cell.model.name]))
    total += sum(sorted(scratch)[-plan.jobs :])  # a worker deletes its own before the next row
    for pool in plan.pools.values():
        total += pool_bytes(len(pool.prompts), pool.gen, sizes[pool.model.name])
    for text in plan.texts.values():
        total += len(text.texts) * (0 if text.model.name in BUNDLED else text_bytes(text.gen))
    return int(total)


def text_bytes(gen: GenSpec) -> int:
    """Bytes that one encoded prompt takes in the store, both guidance branches."""
    return 2 * gen.max_text_tokens * _TEXT_WIDTH * (4 if gen.dtype == "float32" else 2)


def scratch_bytes(options: Mapping[str, Any], sizes: Sizes | None) -> float:
    """Most that a calibration spills at a time: inputs and targets of one block, all samples.

    Where a method trains on what the quantized blocks before it deliver, both are there twice.

    Args:
        options: The method's, defaults filled in.
        sizes: The model; None where its tokens are not known.
    """
    samples = int(options.get("samples") or 0)
    if sizes is None or not samples:
        return 0.0
    shape = sizes.shape
    streams = 4 if options.get("inputs") == "quantized" else 2
    branches = shape.rows * shape.calls if options.get("branches") == "both" else 1
    tokens = shape.video_tokens + shape.text_tokens
    return float(samples * branches * streams * tokens * shape.width * BYTES[sizes.gen.dtype])


def pool_bytes(prompts: int, gen: GenSpec, sizes: Sizes | None) -> float:
    """Most that recorded trajectories take: latents of every step, and the encoded texts.

    Args:
        prompts: Recorded prompts.
        gen: Generation settings.
        sizes: The model; None takes the latents to be as many as a generous share of the pixels.
    """
    if sizes is None:
        return prompts * gen.steps * 2 * 4 * clip_bytes(gen) * _LATENT_SHARE
    shape = sizes.shape
    branches = shape.rows * shape.calls
    texts = branches * shape.text_tokens * _TEXT_WIDTH
    return float(4 * prompts * ((gen.steps + 1) * branches * shape.latent + texts))


def _copied_bytes(plan: Plan) -> int:
    """Clips of every row, each at most as large as its raw frames."""
    every = (len(c.task.clips) * clip_bytes(c.cell.gen) for c in plan.cells if not c.unsupported)
    return int(sum(every))


def clip_bytes(gen: GenSpec) -> float:
    """Most that one clip takes in the store: raw frames, latents, the coded clip."""
    return gen.frames * gen.height * gen.width * 3 * (1 + 2 * _LATENT_SHARE) + 8192
