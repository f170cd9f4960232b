"""Root, circles and sizes of ``docs/design/layout.md`` may get better, not worse."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
VOCABULARY = 10  # Python files at the root of harness/
LONG_FUNCTIONS = 13
METHOD_LINES = 300


@pytest.fixture(scope="module")
def layout() -> ModuleType:
    pytest.importorskip("grimp", reason="comes with import-linter, pip install -e '.[dev]'")
    spec = importlib.util.spec_from_file_location("layout", ROOT / "tools" / "layout.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_imports_make_no_circle_of_rooms_or_of_modules(layout: ModuleType) -> None:
    modules = layout.module_graph()
    assert layout.circles(modules) == []
    assert layout.circles(layout.room_graph(modules)) == []
    assert len(modules) > 200


def test_the_root_holds_the_vocabulary_only() -> None:
    assert len(list((ROOT / "harness").glob("*.py"))) <= VOCABULARY


def test_a_method_is_readable_on_a_few_screens() -> None:
    lines = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for folder in ("methods", "baselines")
        for path in (ROOT / folder).rglob("*.py")
    }
    assert {name: n for name, n in lines.items() if n > METHOD_LINES} == {}


def test_functions_and_files_do_not_grow(
    layout: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    layout.print_sizes()
    text = capsys.readouterr().out
    functions = re.search(r"functions of more than 40 lines: (\d+) of \d+", text)
    assert int(functions[1]) <= LONG_FUNCTIONS, text
    assert "files of more than 400 lines: 0 of" in text, text


def test_a_circle_is_found_and_stands_on_one_level(layout: ModuleType) -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}
    assert layout.circles(graph) == [["b", "c"]]
    assert layout.levels(graph) == {"b": 1, "c": 1, "a": 2, "d": 3}
