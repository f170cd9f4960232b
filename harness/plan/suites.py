"""Prompt suites: bundled ones checked against their digest, VBench's, one's own from a file."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.errors import HarnessError, UsageError, unknown_name
from harness.spec import Prompt, PromptSuite
from harness.store.keys import file_digest, prompts_digest
from harness.vbench import suites as vbench
from harness.vbench.environment import REMEDY, find, missing_line

TABLE = "suites.toml"
TEXT_COLUMNS = ("prompt", "text")
SUFFIXES = (".txt", ".csv", ".jsonl")
USER_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteRow:
    """A bundled suite as listed in ``prompts/suites.toml``."""

    name: str
    file: str
    version: int
    role: str
    sha256: str
    about: str = ""


def bundled(folder: Path | None = None) -> dict[str, SuiteRow]:
    """The bundled suites by name."""
    table = tomllib.loads(((folder or _folder()) / TABLE).read_text(encoding="utf-8"))
    return {row["name"]: SuiteRow(**row) for row in table["suite"]}


def load_suite(
    name: str,
    *,
    limit: int | None = None,
    role: str = "eval",
    folder: Path | None = None,
    python: str | None = None,
) -> PromptSuite:
    """Read a suite.

    Args:
        name: A bundled name, one of VBench's (``harness.vbench.suites.PATTERNS``), or the path of a
            ``.txt`` (a prompt a line), ``.csv`` (a column ``prompt`` or ``text``) or ``.jsonl``
            file (``text``, optionally ``id`` and ``tags``).
        limit: Take the first so many prompts; None for all.
        role: What a suite of one's own is used for; any other suite states its role.
        folder: Where the bundled suites lie, for tests.
        python: The scoring interpreter, whose package VBench's prompts are read from; None for the
            one that ``harness fetch vbench`` left.

    Raises:
        UsageError: No such suite, a suite of the other role, a file that holds no prompts, or a
            limit on one of VBench's.
        HarnessError: A bundled file does not have the digest it was released with, or VBench is not
            installed or another version.
    """
    known = bundled(folder)
    if name in known or vbench.is_name(name):
        own_role = known[name].role if name in known else "eval"
        if own_role != role:
            raise UsageError(
                f"suite '{name}' is for {own_role}, not for {role}",
                f"choose one of: {', '.join(n for n, row in known.items() if row.role == role)}",
            )
        vbench.refuse_limit(name, limit)
        if name not in known:
            return _load_vbench(name, python)
        suite = _load_bundled(known[name], folder or _folder())
    elif Path(name).suffix in SUFFIXES:
        suite = _load_own(Path(name), role)
    else:
        error = unknown_name("suite", name, [*known, *vbench.PATTERNS])
        raise UsageError(error.message, f"{error.hint}; or a path ending in .txt, .csv or .jsonl")
    prompts = suite.prompts if limit is None else suite.prompts[:limit]
    return replace(suite, prompts=prompts, digest=prompts_digest(prompts))


def vbench_rows(python: str | None = None) -> list[tuple[str, str]]:
    """Names of VBench's suites with what they are, or with how to get them.

    Raises:
        HarnessError: The scoring environment does not work, or holds another version.
    """
    environment = find(python)
    if environment is None:
        return [(name, missing_line()) for name in vbench.PATTERNS]
    return vbench.listed(environment.full_info)


def normalised(text: str) -> str:
    """A prompt without case, punctuation and spacing, for finding overlaps."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def refuse_overlap(evaluation: PromptSuite, calibration: PromptSuite) -> None:
    """Hold calibration and evaluation apart.

    Raises:
        UsageError: A text is in both.
    """
    fitted = {normalised(prompt.text) for prompt in calibration.prompts}
    shared = [prompt.id for prompt in evaluation.prompts if normalised(prompt.text) in fitted]
    if shared:
        raise UsageError(
            f"suite '{evaluation.name}' shares {len(shared)} prompts with the calibration suite "
            f"'{calibration.name}' (first: {shared[0]})",
            "calibrate on other prompts: [calibration] suite = ... in the experiment file",
        )


def _folder() -> Path:
    spec = importlib.util.find_spec("prompts")
    if spec is None or not spec.submodule_search_locations:
        raise HarnessError("the package 'prompts' is not installed", "install the project again")
    return Path(next(iter(spec.submodule_search_locations)))


def _load_bundled(row: SuiteRow, folder: Path) -> PromptSuite:
    path = folder / row.file
    found = file_digest(path) if path.is_file() else "missing"
    if found != row.sha256:
        raise HarnessError(
            f"suite '{row.name}' is not the released one: '{path}' has sha256 {found[:12]}, not "
            f"{row.sha256[:12]}",
            "install the package again; put changed prompts into a file of your own",
        )
    suite = _load_own(path, row.role)
    return replace(suite, name=row.name, version=row.version)


def _load_vbench(name: str, python: str | None) -> PromptSuite:
    environment = find(python)
    if environment is None:
        raise HarnessError(
            f"suite '{name}' is read from the vbench package, which is not installed", REMEDY
        )
    return vbench.load(name, environment.full_info)


def _load_own(path: Path, role: str) -> PromptSuite:
    readers = {".txt": _read_txt, ".csv": _read_csv, ".jsonl": _read_jsonl}
    try:
        rows = readers[path.suffix](path)
        prompts = tuple(_prompt(row, f"{path.stem}-{i:03d}") for i, row in enumerate(rows))
    except FileNotFoundError as cause:
        raise UsageError(f"there is no prompt file '{path}'", "check the path") from cause
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as cause:
        raise UsageError(
            f"prompt file '{path}' cannot be read ({cause.__class__.__name__}: {cause})",
            ".txt: a prompt a line; .csv: a column 'prompt'; .jsonl: a field 'text'",
        ) from cause
    _check_prompts(path, prompts)
    digest = prompts_digest(prompts)
    return PromptSuite(
        name=path.stem, version=USER_VERSION, role=role, prompts=prompts, digest=digest
    )


def _prompt(row: dict[str, Any], default_id: str) -> Prompt:
    tags = row.get("tags") or {}
    if not isinstance(row["text"], str):
        raise TypeError("the text is no text")
    return Prompt(
        id=str(row.get("id") or default_id),
        text=row["text"],
        tags=tuple(sorted((str(name), str(value)) for name, value in tags.items())),
    )


def _check_prompts(path: Path, prompts: tuple[Prompt, ...]) -> None:
    if not prompts:
        raise UsageError(f"prompt file '{path}' holds no prompts", "write a prompt a line")
    ids = [prompt.id for prompt in prompts]
    if len(set(ids)) != len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise UsageError(f"prompt file '{path}' has the id '{twice}' twice", "make ids unique")
    for prompt in prompts:
        if not re.fullmatch(r"[\w.-]+", prompt.id):
            raise UsageError(
                f"prompt file '{path}' has the id '{prompt.id}', which cannot name a file",
                "use letters, digits, '-', '_' and '.'",
            )


def _read_txt(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [{"text": line.strip()} for line in lines if line.strip()]


def _read_csv(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        columns = [c for c in reader.fieldnames or () if c.strip().lower() in TEXT_COLUMNS]
        if not columns:
            raise ValueError("no column 'prompt' or 'text'")
        rows = [{"text": (row[columns[0]] or "").strip(), "id": row.get("id")} for row in reader]
    return [row for row in rows if row["text"]]


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]
