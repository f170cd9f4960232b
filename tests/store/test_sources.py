"""Which sources decide a value, and what of them counts."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from harness.errors import HarnessError
from harness.store import sources

if TYPE_CHECKING:
    from pathlib import Path

TEXT = '''"""A module."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pkg_sources import hints

NOTE = Deviation(kind="x", what="y", why="z")


@options
class Knobs:
    """Knobs."""

    group: int = 0


class Method:
    quick_s = 10.0
    version = 1

    def work(self, x):
        """Works."""
        # halves
        return x / 2
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that can be imported, with caches and memory of its own."""
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "home"))
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / "pkg_sources"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    forget()
    yield folder
    forget()


def forget() -> None:
    for cached in (sources.source_of, sources._parsed, sources._memory, sources._facade):
        cached.cache_clear()


def said(package: Path, text: str) -> str:
    (package / "one.py").write_text(text)
    forget()
    return sources.sources_digest(["pkg_sources.one"])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# halves", "# divides by two"),
        ('"""Works."""', '"""Works well."""'),
        ('"""A module."""', '"""The module."""'),
        ("return x / 2", "return  x/2"),
        ("import hints", "import others"),
        ('what="y"', 'what="another sentence"'),
        ("quick_s = 10.0", "quick_s = 12.0"),
        ("    group: int = 0\n", "    group: int = 0\n    extra: bool = False\n"),
    ],
)
def test_what_cannot_change_a_result_does_not_count(package: Path, old: str, new: str) -> None:
    assert old in TEXT
    assert said(package, TEXT.replace(old, new)) == said(package, TEXT)


@pytest.mark.parametrize(
    ("old", "new"), [("x / 2", "x / 3"), ("version = 1", "version = 2"), ("def work", "def play")]
)
def test_what_can_change_a_result_counts(package: Path, old: str, new: str) -> None:
    assert said(package, TEXT.replace(old, new)) != said(package, TEXT)


def test_the_modules_that_one_reaches_are_those_it_imports_when_it_runs(package: Path) -> None:
    (package / "start.py").write_text(
        "import pkg_sources.plain\n"
        "from pkg_sources import direct\n"
        "from .near import name\n"
        "from pkg_sources.facade import handed\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from pkg_sources import hints\n"
        "def late():\n    from pkg_sources import late_one\n"
    )
    for name in ("plain", "direct", "near", "hints", "late_one", "deep"):
        (package / f"{name}.py").write_text("")
    (package / "direct.py").write_text("import json\nfrom pkg_sources.deep import y\n")
    (package / "facade").mkdir()
    (package / "facade" / "__init__.py").write_text(
        "_HOMES = {'handed': 'pkg_sources.facade.home'}\n"
    )
    (package / "facade" / "home.py").write_text("handed = 1\n")
    found = sources.reach(["pkg_sources.start"], ("pkg_sources",))
    assert found == tuple(
        f"pkg_sources.{name}"
        for name in ("deep", "direct", "facade.home", "late_one", "near", "plain", "start")
    )
    less = sources.reach(["pkg_sources.start"], ("pkg_sources",), skip=["pkg_sources.direct"])
    assert set(found) - set(less) == {"pkg_sources.direct", "pkg_sources.deep"}
    assert not any(name.startswith("pkg_sources") for name in sys.modules)


def test_what_was_parsed_is_remembered_by_its_bytes(package: Path) -> None:
    first = said(package, TEXT)
    (package / "one.py").write_text("x = (")
    forget()
    with pytest.raises(HarnessError, match="cannot be parsed"):
        sources.sources_digest(["pkg_sources.one"])
    assert said(package, TEXT) == first
    memory = (package.parent / "home" / sources.MEMORY).read_text()
    (package.parent / "home" / sources.MEMORY).write_text(memory[:20])
    assert said(package, TEXT) == first, "a memory that is cut is no memory"


def test_a_module_without_a_source_is_named(package: Path) -> None:
    with pytest.raises(HarnessError, match="has no source here"):
        sources.sources_digest(["pkg_sources.absent"])
    assert sources.source_of("math") is None
