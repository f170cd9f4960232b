"""An experiment from arguments of a Python call, held to the types of the experiment file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from harness.errors import UsageError, unknown_name
from harness.plan.experiment import Flags
from harness.plan.experiment_file import ExperimentFile, RunSection, load_file, read_table

_SEVERAL = ("models", "methods", "bits", "seeds", "metrics")


def given_file(file: str | Path | Mapping[str, Any] | None) -> ExperimentFile:
    """An experiment file by path or content, an empty one for None.

    Raises:
        UsageError: It cannot be read, or a key or value in it is wrong.
    """
    if isinstance(file, (str, PurePath)):
        return load_file(Path(file))
    if file is not None and not isinstance(file, Mapping):
        raise UsageError(f"{file!r} is no experiment", "give the path of a TOML file, or a dict")
    return read_table(dict(file or {}), "the experiment")


def given_flags(given: Mapping[str, Any]) -> Flags:
    """Flags of an experiment from keyword arguments, held to the types of the experiment file.

    Raises:
        UsageError: One of them is unknown, or has another type.
    """
    known = {f.name for f in dataclasses.fields(Flags)}
    sections: dict[str, dict[str, Any]] = {"run": {}, "execution": {}}
    for name, value in given.items():
        if name not in known:
            raise unknown_name("argument", name, known)
        section = "run" if name in RunSection.model_fields else "execution"
        sections[section][name] = _listed(value) if name in _SEVERAL else _text(value)
    read = read_table(sections, "run_experiment")
    found = {name: getattr(read.run, name) for name in sections["run"]}
    found |= {name: getattr(read.execution, name) for name in sections["execution"]}
    for name in _SEVERAL:
        found[name] = tuple(found[name]) if found.get(name) is not None else None
    found["out"] = Path(found["out"]) if found.get("out") is not None else None
    return Flags(**found)


def _listed(value: Any) -> Any:
    """One name, or several with commas between them, as the list that an experiment file has."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, (list, tuple)):
        return [_text(part) for part in value]
    return [_text(value)] if isinstance(value, PurePath) else value


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, PurePath) else value
