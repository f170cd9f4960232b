"""What others write and name as ``module:attribute``: every way to be wrong ends in two lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from harness.errors import HarnessError, UsageError
from harness.models.table import model_spec
from harness.plan.registry import BrokenMethodError, describe, find_method, load_method
from harness.plug_in import check_spelling
from harness.score.registry import BrokenScorerError, choose_scorers, load_scorer
from harness.score.scorer import Unscored
from harness.spec import Prompt

if TYPE_CHECKING:
    from pathlib import Path

BROKEN = {
    "def f(:\n": ("SyntaxError", "line 1"),
    "x = 1\ny = x / 0\n": ("ZeroDivisionError: division by zero", "line 2"),
    "class Named:\n    def __init__(self, a):\n        pass\n": ("argument: 'a'", "signature"),
    "class Named:\n    def __init__(self):\n        raise KeyError(3)\n": ("KeyError: 3", "line 3"),
    "import not_there\n": ("No module named 'not_there'", "install what it needs"),
    "class Other:\n    pass\n": ("has no attribute 'Named'", "install what it needs"),
    "from harness.api import no_such\n": ("cannot import name 'no_such'", "install"),
}


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest):
    monkeypatch.syspath_prepend(tmp_path)

    def made(text: str) -> str:
        module = f"written_{abs(hash((text, request.node.name)))}"
        (tmp_path / f"{module}.py").write_text(text)
        return f"{module}:Named"

    return made


@pytest.mark.parametrize(("text", "said"), BROKEN.items())
def test_a_file_that_cannot_be_loaded_says_why_and_where(write, text, said) -> None:
    for load, error in ((load_method, BrokenMethodError), (load_scorer, BrokenScorerError)):
        with pytest.raises(error) as caught:
            load(write(text))
        assert said[0] in caught.value.message
        assert said[1] in caught.value.hint
        assert "\n" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("folder/my_file.py:Mine", "PYTHONPATH=folder and my_file:Mine"),
        ("my_file.py:Mine", "PYTHONPATH=. and my_file:Mine"),
        ("/abs/folder/my_file:Mine", "PYTHONPATH=/abs/folder and my_file:Mine"),
        (":Mine", "give module:attribute"),
        ("my_file:", "give module:attribute"),
        ("my file:Mine", "give module:attribute"),
        ("a:b:c", "give module:attribute"),
        ("my-file:Mine", "give module:attribute"),
    ],
)
def test_a_path_or_a_slip_is_no_module_attribute(name: str, hint: str) -> None:
    for ask in (lambda n: check_spelling("method", n), find_method, load_scorer):
        with pytest.raises(UsageError, match="is no module:attribute") as caught:
            ask(name)
        assert hint in caught.value.hint


@pytest.mark.parametrize("name", ["a:B", "a.b.c:D", "a:B.c", "_a1:_b", "häuser:Große"])
def test_modules_and_attributes_are(name: str) -> None:
    check_spelling("method", name)


METHOD = """
from harness.api import Method

class Named(Method):
    name = "named"

    def supports(self, family, bits):
        raise KeyError(family)

    def quantize_(self, transformer, ctx):
        raise NotImplementedError
"""


def test_a_method_that_fails_when_it_is_asked_is_said_so(write, tmp_path: Path) -> None:
    with pytest.raises(BrokenMethodError, match="KeyError: 'wan'") as caught:
        describe(write(METHOD), {}, "wan", ("w4a6",), tmp_path / "facts", quick=False)
    assert caught.value.hint.endswith("line 8")
    assert not list(tmp_path.glob("facts/*"))


SCORER = """
from harness.api import Metric, Scorer

class Named(Scorer):
    name = "named"
    about = "nothing"
    metrics = (Metric(name="named", unit="points"),)

    def {member}(self, *asked):
        raise ValueError("no")

    def score(self, clip, reference):
        return {{"named": 1.0}}
"""


@pytest.mark.parametrize("member", ["missing", "refusal"])
def test_a_metric_that_fails_when_it_is_asked_costs_its_own_values(write, member: str) -> None:
    prompts = (Prompt(id="p", text="a red circle"),)
    asked = [write(SCORER.format(member=member))]
    found = choose_scorers(asked, model_spec("shapes"), prompts, clips=1)
    assert [type(scorer) for scorer in found if "named" in scorer.name] == [Unscored]
    assert len(found) > 1


def test_an_error_of_ours_in_their_file_is_passed_on(write) -> None:
    name = write("from harness.errors import UsageError\nraise UsageError('own', 'words')\n")
    with pytest.raises(HarnessError, match="own") as caught:
        load_method(name)
    assert type(caught.value) is UsageError


def test_what_only_a_running_script_has_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot be imported by a worker"):
        check_spelling("metric", "__main__:Mine")
