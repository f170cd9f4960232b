from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.errors import HarnessError, UsageError
from harness.method import resolve_options
from harness.plan.registry import (
    BrokenMethodError,
    MethodFacts,
    describe,
    find_method,
    load_method,
    methods,
    several,
)
from tests.doubles import Toy

TOY = "tests.doubles:Toy"


def test_the_installed_methods_are_listed_without_importing_them() -> None:
    code = (
        "import sys; from harness.plan.registry import methods; print(*methods());"
        "assert not {'torch', 'methods', 'baselines'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"fp", "control", "rtn", "rtn-gptq", "s2q", "ptq4dit"} <= set(done.stdout.split())


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        find_method("s2qq")
    assert caught.value.message == "method 's2qq' is unknown"
    assert caught.value.hint.startswith("did you mean s2q? known: ")


def test_all_stands_for_every_registered_method_that_quantizes() -> None:
    every, baselines = several("all"), several("baselines")
    assert set(every) == set(methods()) - {"fp", "control"}
    assert every[: len(baselines)] == baselines
    assert "rtn" in baselines
    assert "s2q" not in baselines
    assert several("s2q") == ()


def test_a_method_can_be_named_by_module_and_attribute() -> None:
    assert load_method(TOY).name == "toy"
    assert "toy" not in methods()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:X", "cannot be imported"),
        ("tests.doubles:Absent", "cannot be imported"),
        ("tests.doubles:NotAMethod", "lacks Options"),
    ],
)
def test_what_is_no_method_is_refused_with_the_reason(name: str, message: str) -> None:
    with pytest.raises(HarnessError, match=message):
        load_method(name)


def test_options_are_filled_in_and_checked() -> None:
    found = resolve_options(Toy(), {"strength": 1, "names": ["x"]})
    assert (found.strength, found.rounds, found.names) == (1.0, 3, ("x",))
    with pytest.raises(UsageError) as caught:
        resolve_options(Toy(), {"strenght": 1.0})
    assert "did you mean strength?" in caught.value.hint
    with pytest.raises(UsageError, match="'rounds' of method 'toy' is '3', a str"):
        resolve_options(Toy(), {"rounds": "3"})
    with pytest.raises(UsageError, match="is True, a bool"):
        resolve_options(Toy(), {"rounds": True})


def test_planning_knows_the_work_of_a_calibration(tmp_path: Path) -> None:
    asked = ("w4a4", "w16a16")
    found = describe("flatquant", {"epochs": 2}, "cogvideox", asked, tmp_path, quick=False)
    assert {width: work["steps"] for width, work in found.work.items()} == {"w4a4": 80, "w16a16": 0}
    assert describe("flatquant", {"epochs": 2}, "cogvideox", asked, tmp_path, quick=False) == found


def test_facts_are_remembered_until_the_source_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "pkg_of_a_plugin"
    package.mkdir()
    (package / "__init__.py").write_text("")
    source = Path("tests/doubles.py")
    text = (Path(__file__).resolve().parents[2] / source).read_text()
    (package / "toy.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    name, cache = "pkg_of_a_plugin.toy:Toy", tmp_path / "facts"

    def ask() -> MethodFacts:
        return describe(name, {"rounds": 4}, "cogvideox", ("w4a6", "w3a4"), cache, quick=False)

    first = ask()
    assert first.options == {"strength": 0.5, "rounds": 4, "names": ["a", "b"]}
    assert first.unsupported == {"w3a4": "toys have two bits or more than three"}
    assert first.work == {}
    monkeypatch.setattr("harness.plan.registry.load_method", _fail)
    assert ask() == first
    (package / "toy.py").write_text(text + "\n# a comment\n")
    assert ask() == first
    (package / "toy.py").write_text(text + "\nCHANGED = 1\n")
    with pytest.raises(BrokenMethodError, match="imported"):
        ask()


def _fail(name: str) -> None:
    raise AssertionError(f"{name} was imported")
