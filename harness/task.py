"""Tasks: what a worker is told, as one JSON file, and what is heard of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.spec import GenSpec, MethodSpec, ModelSpec, Prompt, Status
from harness.store.keys import Keyed, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

TEXT = "text"
POOL = "pool"
CELL = "cell"
MEASURE = "measure"
JUDGE = "judge"
ALIVE = "alive"
"""Event of a worker that has nothing to report and works."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipTask:
    """One clip to make, unless the store has it.

    Attributes:
        noise_seed: Seed of the initial noise, from prompt and seed.
        reference: Key of the unquantized clip of the same prompt and seed; empty for the reference.
        text: Key of the encoded prompt.
    """

    prompt: Prompt
    seed: int
    noise_seed: int
    clip: Keyed
    reference: str
    text: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextTask:
    """Encode the prompts of one model.

    Attributes:
        texts: Keys by prompt.
    """

    id: str
    model: ModelSpec
    gen: GenSpec
    texts: dict[str, Keyed]
    kind: str = TEXT


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolTask:
    """Record the calibration trajectories of one model.

    Attributes:
        texts: Keys of the encoded prompts, by prompt.
    """

    id: str
    model: ModelSpec
    gen: GenSpec
    prompts: tuple[Prompt, ...]
    seed: int
    pool: Keyed
    kind: str = POOL
    texts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class CellTask:
    """Make one row: quantize, verify, generate, score.

    Attributes:
        pool: Key of the recorded trajectories; empty for a method without calibration.
        artifact: None for a reference row, which is not quantized.
        text: Key of the encoded empty prompt.
        first: Whether it is the row that the others are held against: where one of its clips
            diverges, the rest is not made.
        kernels: What computes the quantized layers: ``auto``, ``off``, or the name of a kernel.
    """

    id: str
    model: ModelSpec
    gen: GenSpec
    method: MethodSpec
    bits: str
    pool: str
    artifact: Keyed | None
    clips: tuple[ClipTask, ...]
    scorers: tuple[str, ...]
    kind: str = CELL
    text: str = ""
    first: bool = False
    kernels: str = "off"


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredRow:
    """A row of the measuring worker; an empty artifact is the unquantized model."""

    cell: str
    artifact: str


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasureTask:
    """Time rows of one model in turns, alone on the machine.

    Attributes:
        turns: How often each row is opened and timed.
        steps: Denoising steps that are timed in a turn.
        text: Key of the encoded empty prompt.
        offload: What of the model waits in the host's memory meanwhile.
        kernels: What computes the quantized layers.
    """

    id: str
    model: ModelSpec
    gen: GenSpec
    rows: tuple[MeasuredRow, ...]
    measure: Keyed
    turns: int
    steps: int
    text: str = ""
    kind: str = MEASURE
    offload: str = "none"
    kernels: str = "off"


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeTask:
    """Score clips in the scoring environment, whose worker knows nothing of this package.

    Attributes:
        python: Interpreter of that environment.
        folder: Where the weights lie; the worker runs in it.
        job: The worker's job file, but for what the executor adds: threads and parent.
    """

    id: str
    python: Path
    folder: Path
    job: dict[str, Any]
    kind: str = JUDGE


Task = TextTask | PoolTask | CellTask | MeasureTask | JudgeTask


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A task with where and on what it runs; none of this is part of a key.

    Attributes:
        store: Root of the store.
        device: What torch is told.
        threads: Threads that torch computes with.
        parent: Process id of the run; the worker ends when that process does.
        offload: What of a model stays in the host's memory, of ``harness.models.offload.OFFLOADS``.
    """

    task: Task
    store: Path
    device: str
    threads: int
    parent: int
    offload: str = "none"

    def to_json(self) -> str:
        """One JSON document."""
        return json.dumps(plain(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Job:
        """Read back what ``to_json`` wrote."""
        raw = json.loads(text)
        return cls(
            task=_READERS[raw["task"]["kind"]](raw["task"]),
            store=Path(raw["store"]),
            device=raw["device"],
            threads=raw["threads"],
            parent=raw["parent"],
            offload=raw["offload"],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """A line from a worker.

    Attributes:
        task: Id of the task.
        name: ``progress``, ``clip`` or ``stage``.
        facts: What the line says besides.
    """

    task: str
    name: str
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """How a worker ended.

    Attributes:
        detail: One line; empty for ``ok``.
        disk_full: Whether the cause is a full disk, which stops the run.
        log: What it printed.
        seconds: Wall time from start to end.
    """

    task: str
    status: Status
    detail: str
    disk_full: bool
    log: Path
    seconds: float


def model_from(raw: Mapping[str, Any]) -> ModelSpec:
    """Read a model back from JSON."""
    return ModelSpec(**{**raw, "gen": GenSpec(**raw["gen"])})


def prompt_from(raw: Mapping[str, Any]) -> Prompt:
    """Read a prompt back from JSON."""
    return Prompt(id=raw["id"], text=raw["text"], tags=tuple((k, v) for k, v in raw["tags"]))


def method_from(raw: Mapping[str, Any]) -> MethodSpec:
    """Read a method row back from JSON."""
    spec = MethodSpec(**{k: v for k, v in raw.items() if k != "options"})
    return replace(spec, options=tuple((k, v) for k, v in raw["options"]))


def _common(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {**raw, "model": model_from(raw["model"]), "gen": GenSpec(**raw["gen"])}


def _text(raw: Mapping[str, Any]) -> TextTask:
    texts = {text: Keyed(**keyed) for text, keyed in raw["texts"].items()}
    return TextTask(**{**_common(raw), "texts": texts})


def _pool(raw: Mapping[str, Any]) -> PoolTask:
    prompts = tuple(prompt_from(p) for p in raw["prompts"])
    return PoolTask(**{**_common(raw), "prompts": prompts, "pool": Keyed(**raw["pool"])})


def _clip(raw: Mapping[str, Any]) -> ClipTask:
    return ClipTask(**{**raw, "prompt": prompt_from(raw["prompt"]), "clip": Keyed(**raw["clip"])})


def _cell(raw: Mapping[str, Any]) -> CellTask:
    return CellTask(
        **{
            **_common(raw),
            "method": method_from(raw["method"]),
            "artifact": None if raw["artifact"] is None else Keyed(**raw["artifact"]),
            "clips": tuple(_clip(c) for c in raw["clips"]),
            "scorers": tuple(raw["scorers"]),
        }
    )


def _measure(raw: Mapping[str, Any]) -> MeasureTask:
    rows = tuple(MeasuredRow(**row) for row in raw["rows"])
    return MeasureTask(**{**_common(raw), "rows": rows, "measure": Keyed(**raw["measure"])})


def _judge(raw: Mapping[str, Any]) -> JudgeTask:
    return JudgeTask(**{**raw, "python": Path(raw["python"]), "folder": Path(raw["folder"])})


_READERS: dict[str, Callable[[Mapping[str, Any]], Task]] = {
    TEXT: _text,
    POOL: _pool,
    CELL: _cell,
    MEASURE: _measure,
    JUDGE: _judge,
}
