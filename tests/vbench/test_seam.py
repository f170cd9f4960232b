from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
FOREIGN = ROOT / "harness" / "vbench" / "foreign"
OURS = ("harness", "methods", "baselines", "prompts", "results")
THEIRS = ("vbench", "cv2", "clip", "pyiqa", "timm", "decord.bridge")
"""What VBench brings; decord is ours too."""


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, at whatever depth, relative ones left out."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module


def among(module: str, names: tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in names)


@pytest.mark.parametrize("path", sorted(FOREIGN.rglob("*.py")), ids=lambda path: path.stem)
def test_what_runs_in_the_scoring_environment_imports_nothing_of_ours(path):
    assert not [name for name in imported(path) if among(name, OURS)]


def test_nothing_of_vbench_is_imported_on_our_side():
    found = {
        path.relative_to(ROOT): name
        for top in OURS
        for path in (ROOT / top).rglob("*.py")
        if not path.is_relative_to(FOREIGN)
        for name in imported(path)
        if among(name, THEIRS)
    }
    assert not found


def test_the_scoring_interpreter_gets_no_path_of_ours(monkeypatch):
    from harness.vbench.environment import FOREIGN as GIVEN
    from harness.vbench.environment import worker_environment

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTHONHOME", sys.prefix)
    given = worker_environment()
    assert given["PYTHONPATH"] == str(GIVEN) == str(FOREIGN)
    assert "PYTHONHOME" not in given
    assert {path.name for path in FOREIGN.iterdir()} - {"__pycache__"} == {"vbench_worker"}
