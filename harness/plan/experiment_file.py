"""The experiment file: TOML with strict types, in which an unknown key is an error."""

from __future__ import annotations

import difflib
import tomllib
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from harness.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class RunSection(_Section):
    """``[run]``: what is compared."""

    models: list[str] | None = Field(default=None, min_length=1)
    methods: list[str] | None = Field(default=None, min_length=1)
    bits: list[str] | None = Field(default=None, min_length=1)
    suite: str | None = None
    limit: int | None = Field(default=None, ge=1)
    seeds: list[int] | None = Field(default=None, min_length=1)
    metrics: list[str] | None = Field(default=None, min_length=1)
    out: str | None = None
    baselines: bool | None = None


class MethodSection(_Section):
    """``[[method]]``: one row, or one for each calibration seed."""

    name: str
    label: str | None = None
    options: dict[str, JsonValue] = {}
    calibration_seed: int | None = None
    calibration_seeds: list[int] | None = Field(default=None, min_length=1)
    bits: list[str] | None = Field(default=None, min_length=1)


class GenSection(_Section):
    """``[gen]``: overrides of the model's generation settings."""

    height: int | None = Field(default=None, ge=8)
    width: int | None = Field(default=None, ge=8)
    frames: int | None = Field(default=None, ge=1)
    fps: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1)
    guidance: float | int | None = Field(default=None, ge=0)
    dtype: str | None = Field(default=None, pattern="^(float32|bfloat16|float16)$")
    max_text_tokens: int | None = Field(default=None, ge=1)
    vae_tiling: bool | None = None
    negative_prompt: str | None = None
    flow_shift: float | int | None = Field(default=None, gt=0, allow_inf_nan=False)
    guidance_2: float | int | None = Field(default=None, ge=0)


class CalibrationSection(_Section):
    """``[calibration]``: the budget that every method gets."""

    suite: str | None = None
    prompts: int | None = Field(default=None, ge=1)
    seed: int | None = None
    budget: Literal["quick", "full"] | None = None


class ExecutionSection(_Section):
    """``[execution]``: how the work is spread; no result depends on it but through the threads."""

    jobs: int | None = Field(default=None, ge=1)
    threads: int | None = Field(default=None, ge=1)
    stall_s: float | int | None = Field(default=None, gt=0)
    device: str | None = None
    measure: bool | None = None
    offload: Literal["none", "components", "blocks"] | None = None
    kernels: str | None = None


class EnvSection(_Section):
    """``[envs.vbench]``: an interpreter that exists already."""

    python: str | None = None


class EnvsSection(_Section):
    """``[envs]``: environments beside this one."""

    vbench: EnvSection = EnvSection()


class VBenchSection(_Section):
    """``[vbench]``: how the official judge is run."""

    scorer: Literal["shared", "official"] | None = None
    precision: Literal["float32", "bfloat16"] | None = None
    batch: int | None = Field(default=None, ge=1)
    shards: int | None = Field(default=None, ge=1)


class ExperimentFile(_Section):
    """A whole experiment file."""

    run: RunSection = RunSection()
    method: list[MethodSection] = []
    gen: GenSection = GenSection()
    calibration: CalibrationSection = CalibrationSection()
    execution: ExecutionSection = ExecutionSection()
    envs: EnvsSection = EnvsSection()
    vbench: VBenchSection = VBenchSection()


_RENAMED = {
    "execution.timeout_s": (
        "a worker that says what it does may work as long as it takes",
        "set execution.stall_s, the seconds that it may be silent (default 1800)",
    )
}
"""Keys of earlier versions: why they are gone, and what to write instead."""


def load_file(path: Path) -> ExperimentFile:
    """Read an experiment file.

    Raises:
        UsageError: It cannot be read, or a key or value in it is wrong.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as cause:
        raise UsageError(f"'{path}' cannot be read: {cause.strerror}", "check the path") from cause
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as cause:
        raise UsageError(f"'{path}' is not TOML: {cause}", "see `harness run --help`") from cause
    return read_table(table, f"'{path}'")


def read_table(table: dict[str, Any], name: str) -> ExperimentFile:
    """Read the content of an experiment file.

    Args:
        table: The content.
        name: What an error calls it.

    Raises:
        UsageError: A key or value in it is wrong.
    """
    try:
        return ExperimentFile.model_validate(table)
    except ValidationError as cause:
        raise _explain(name, cause) from None


def _explain(name: str, cause: ValidationError) -> UsageError:
    """The first complaint of pydantic as one line, with the nearest known key."""
    error = cause.errors()[0]
    place = [str(part) for part in error["loc"]]
    if error["type"] != "extra_forbidden":
        return UsageError(
            f"{name}: {'.'.join(place)} = {error['input']!r}: {error['msg'].lower()}",
            "see `harness run --help` and the experiments/ folder for examples",
        )
    if (renamed := _RENAMED.get(".".join(place))) is not None:
        return UsageError(f"{name}: key '{'.'.join(place)}' is gone: {renamed[0]}", renamed[1])
    section: type[BaseModel] = ExperimentFile
    sections: dict[str, type[BaseModel]] = {
        "run": RunSection,
        "method": MethodSection,
        "gen": GenSection,
        "calibration": CalibrationSection,
        "execution": ExecutionSection,
        "envs": EnvsSection,
        "envs.vbench": EnvSection,
        "vbench": VBenchSection,
    }
    if len(place) > 1:
        section = sections.get(".".join(place[:-1])) or sections[place[0]]
    known = sorted(section.model_fields)
    near = difflib.get_close_matches(place[-1], known, n=1, cutoff=0.5)
    guess = f"did you mean {near[0]}? " if near else ""
    return UsageError(
        f"{name}: key '{'.'.join(place)}' is unknown", f"{guess}known: {', '.join(known)}"
    )
