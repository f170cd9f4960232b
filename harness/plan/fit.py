"""Whether a plan fits the machine's memory, and what is refused.

An estimate is held by tests to within ``MARGIN`` of measured peaks, and so is the refusal: what is
above the memory by less is left to the run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from harness.bits import BitSpec
from harness.errors import InfraError
from harness.kernels.registry import OFF
from harness.kernels.request import holds_packed
from harness.models.families import family_by_name
from harness.models.offload import BLOCKS, COMPONENTS, NONE
from harness.models.parts import parts
from harness.plan import capacity
from harness.plan.memory import (
    DENOISER,
    HESSIANS,
    LAYERS,
    TRAINING,
    Peak,
    Sizes,
    on_host,
    peaks,
    sizes_of,
)
from harness.plan.memory_facts import HALF_LANE_BITS, LANE_BITS, MARGIN
from harness.spec import SIMULATED

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from harness.plan.cells import PlannedCell
    from harness.plan.plan import Plan
    from harness.plan.registry import MethodFacts
    from harness.spec import GenSpec, ModelSpec

_TRAINS = ("epochs", "iterations")
"""Options of methods that train, where a method does not tell what it computes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What the peaks depend on besides the model.

    Attributes:
        offload: Value of ``[execution] offload``.
        workers: Workers side by side on the device.
        tiled: Whether decoding is tiled; None as the generation settings say.
        kernels: Whether kernels may compute quantized rows.
        packed: Whether the kernel that comes first multiplies 4-bit weights as they lie; else, and
            above 4 bits, a row holds a byte a weight.
    """

    offload: str = NONE
    workers: int = 1
    tiled: bool | None = None
    kernels: bool = False
    packed: bool = False

    def held(self, bits: float | None) -> float | None:
        """Bits that a weight of a row takes while it samples, None without such a row."""
        # weights that travel between devices are computed by no kernel
        if not bits or not self.kernels or self.offload != NONE:
            return bits
        return max(bits, HALF_LANE_BITS if self.packed and bits <= HALF_LANE_BITS else LANE_BITS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """The memory of one model's stages on one device.

    Attributes:
        model: Its name.
        sizes: What the peaks follow from.
        kinds: What its methods hold while they calibrate.
        w_bits: Widest row that computes its own layers; None without.
        on_cpu: The device is the processor.
        device: Bytes that the device has.
        host: Bytes that the host has.
        setting: As the plan has it.
    """

    model: str
    sizes: Sizes
    kinds: tuple[str, ...]
    w_bits: float | None
    on_cpu: bool
    device: int
    host: int
    setting: Setting

    def peaks(self, setting: Setting | None = None) -> tuple[Peak, ...]:
        """Peak of every stage under a setting; None takes the plan's."""
        chosen = setting or self.setting
        found = peaks(
            self.sizes, offload=NONE if self.on_cpu else chosen.offload, kinds=self.kinds,
            w_bits=chosen.held(self.w_bits), tiled=chosen.tiled,
        )  # fmt: skip
        if self.on_cpu:
            return on_host(found, chosen.workers)
        return tuple(
            replace(peak, device=chosen.workers * peak.device, host=chosen.workers * peak.host)
            for peak in found
        )

    def too_large(self, setting: Setting | None = None, margin: float = MARGIN) -> Peak | None:
        """The stage that exceeds the memory most, beyond the margin; None where all fit."""
        above = [
            peak
            for peak in self.peaks(setting)
            if peak.device > self.device * (1 + margin) or peak.host > self.host * (1 + margin)
        ]
        return max(above, key=lambda peak: (peak.device, peak.host), default=None)

    def advice(self) -> str:
        """The least change of settings with which everything fits."""
        for setting, how in self._changes():
            if self.too_large(setting, margin=0.0) is None:
                return f"set {how}"
        smallest = replace(self.setting, offload=BLOCKS, workers=1, tiled=True)
        needed = max(peak.device for peak in self.peaks(smallest))
        return (
            f"no setting fits: at least {size_text(needed)} are needed; a smaller [gen] needs less"
        )

    def _changes(self) -> Iterator[tuple[Setting, str]]:
        own = self.setting
        workers = [(own.workers, "")] + ([(1, "--jobs 1")] if own.workers > 1 else [])
        tiling = [(own.tiled, ""), (True, "[gen] vae_tiling = true")]
        offloads = [(own.offload, "")]
        if not self.on_cpu:
            kept = (NONE, COMPONENTS, BLOCKS)
            stronger = kept[kept.index(own.offload) + 1 :]
            offloads += [(name, f"--offload {name}") for name in stronger]
        kernels = [(own.kernels, "")] + ([(False, "--kernels off")] if own.kernels else [])
        every = [
            (
                replace(own, offload=o, workers=w, tiled=t, kernels=k),
                [text for text in (a, b, c, d) if text],
            )
            for w, a in workers
            for k, d in kernels
            for o, b in offloads
            for t, c in tiling
        ]
        for setting, texts in sorted(every, key=lambda pair: len(pair[1])):
            if texts:
                yield setting, " and ".join(texts)


def budgets(plan: Plan, cache: Path) -> list[Budget]:
    """The budget of every model of which something is left to make and whose sizes are known.

    Args:
        plan: The plan.
        cache: Folder of remembered facts.

    Raises:
        HarnessError: A model's files cannot be read.
    """
    found = []
    for model in plan.models:
        if all(c.done for c in plan.cells if c.cell.model == model):
            continue
        sizes = model_sizes(plan, model, cache)
        if sizes is not None:
            found.append(budget_of(plan, model, sizes))
    return found


def budget_of(plan: Plan, model: ModelSpec, sizes: Sizes) -> Budget:
    """The budget of one model of a plan: of what is left to make of it."""
    cells = [c for c in plan.cells if c.cell.model == model and not c.done]
    simulated = [BitSpec.parse(c.cell.bits).w for c in cells if _simulated(c)]
    return Budget(
        model=model.name,
        sizes=sizes,
        kinds=tuple({kind_of(c.facts): 0 for c in cells if c.needs_quantizing}),
        w_bits=max(simulated, default=None),
        on_cpu=plan.device.id == "cpu",
        device=capacity.device_bytes(plan.device),
        host=capacity.host_bytes(),
        setting=Setting(
            offload=plan.experiment.execution.offload,
            workers=max(1, min(plan.jobs, len(cells))),
            kernels=plan.experiment.execution.kernels != OFF,
            packed=holds_packed(plan.experiment.execution.kernels, plan.device.id),
        ),
    )


def model_sizes(plan: Plan, model: ModelSpec, cache: Path) -> Sizes | None:
    """Sizes of a model of the plan; None where its family or decoder has no formula."""
    return sizes_at(model, plan.gens[model.name], cache)


def sizes_at(model: ModelSpec, gen: GenSpec, cache: Path) -> Sizes | None:
    """Sizes of a model at generation settings; None where its family or decoder has no formula.

    Raises:
        HarnessError: Its files cannot be read.
    """
    single = family_by_name(model.family).single_precision
    return sizes_of(model.family, gen, parts(model, cache), single)


def kind_of(facts: MethodFacts) -> str:
    """What a method holds while it calibrates: by the work it tells of, else by its options."""
    if any(work.get("denoiser_steps") for work in facts.work.values()):
        return DENOISER
    if any(work.get("steps") for work in facts.work.values()):
        return TRAINING
    if not facts.work and any(facts.options.get(name) for name in _TRAINS):
        return TRAINING
    return HESSIANS if facts.needs_calibration else LAYERS


def check_memory(plan: Plan, cache: Path) -> None:
    """Refuse what cannot fit, before anything is started.

    Raises:
        InfraError: A stage needs more than the machine has by more than the margin.
    """
    for budget in budgets(plan, cache):
        peak = budget.too_large()
        if peak is None:
            continue
        on_device = peak.device > budget.device * (1 + MARGIN)
        need, has = (peak.device, budget.device) if on_device else (peak.host, budget.host)
        where = f"{plan.device.id} ({plan.device.name})" if on_device else "this machine"
        several = budget.setting.workers
        raise InfraError(
            f"'{budget.model}' needs about {size_text(need)} to {peak.stage}"
            f"{f' in {several} workers' if several > 1 else ''}, {where} has {size_text(has)}",
            budget.advice(),
        )


def _simulated(cell: PlannedCell) -> bool:
    return cell.facts.execution == SIMULATED


def size_text(count: int) -> str:
    """Bytes in words."""
    return f"{count / 1e9:.1f} GB" if count >= 5e7 else f"{count / 1e6:.0f} MB"
