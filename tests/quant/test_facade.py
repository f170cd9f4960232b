"""``harness.quant`` hands the toolkit on, and costs nothing before it is used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import harness.quant

SOURCE = ast.parse(Path(harness.quant.__file__).read_text(encoding="utf-8"))


def test_importing_the_toolkit_imports_no_torch() -> None:
    code = "import sys, harness.api, harness.quant; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", sorted(harness.quant._HOMES))
def test_every_name_is_where_the_facade_says(name: str) -> None:
    home = harness.quant._HOMES[name]
    found = getattr(harness.quant, name)
    assert getattr(found, "__module__", home) in (home, "typing")


def test_type_checkers_see_the_same_names_from_the_same_modules() -> None:
    guarded = next(node for node in SOURCE.body if isinstance(node, ast.If))
    seen = {
        alias.asname: node.module
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == harness.quant._HOMES


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = harness.quant.quantise  # type: ignore[attr-defined]
    assert "Walk" in dir(harness.quant)


def test_the_parts_of_the_toolkit_never_import_through_the_facade() -> None:
    folder = Path(harness.quant.__file__).parent
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.module != "harness.quant", path
            if isinstance(node, ast.Import):
                assert "harness.quant" not in [alias.name for alias in node.names], path


LEVELS = ("layers", "calibration", "rounding", "learning")


@pytest.mark.parametrize("level", range(len(LEVELS)))
def test_arrows_between_the_parts_go_one_way(level: int) -> None:
    folder = Path(harness.quant.__file__).parent / LEVELS[level]
    above = tuple(f"harness.quant.{name}" for name in LEVELS[level + 1 :])
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert not node.module.startswith(above), (path, node.module)
