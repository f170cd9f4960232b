"""The matrix of methods and families, and how widths are written short."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from harness.api import BitSpec, Unsupported
from harness.cli.listing import BITS, listing, widths_text
from harness.models.families import FAMILIES
from harness.plan.registry import load_method
from harness.score.names import JUDGED, SETS
from harness.vbench import environment
from tests.doubles import Toy
from tests.vbench.fake_environment import use_worker, write_environment

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint
    from pathlib import Path


class Choosy(Toy):
    """Refuses a family, and elsewhere all but w8a8."""

    name = "choosy"

    def supports(self, family: str, bits: BitSpec) -> Unsupported | None:
        if family == "wan":
            return Unsupported(reason="no fold for two experts")
        return None if str(bits) == "w8a8" else Unsupported(reason=f"int8 only, never {bits}")


class Nowhere(Toy):
    """Has one width and refuses that for the machine."""

    name = "nowhere"

    def supports(self, family: str, bits: BitSpec) -> Unsupported | None:
        right = str(bits) == "w8a8"
        return Unsupported(reason="needs a GPU" if right else f"never {bits}")


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    from importlib.metadata import EntryPoint

    monkeypatch.setenv("HARNESS_HOME", str(tmp_path))
    names = {
        "choosy": f"{__name__}:Choosy",
        "nowhere": f"{__name__}:Nowhere",
        "toy": "tests.doubles:Toy",
        "fp": "baselines.fp:FP",
        "gone": "no_such_module:X",
    }
    found: dict[str, EntryPoint] = {
        name: EntryPoint(name=name, value=value, group="harness.methods")
        for name, value in names.items()
    }
    monkeypatch.setattr("harness.plan.registry.methods", lambda: found)
    done = CliRunner().invoke(listing, ["methods"], catch_exceptions=False)
    return [line.rstrip() for line in done.output.splitlines()]


def test_every_method_meets_every_family(listed: list[str]) -> None:
    assert listed[0].split() == ["method", *FAMILIES, "calibration", "widths"]
    rows = {line.split()[0]: line.split()[1:] for line in listed[1:6]}
    yes = ["no" if family == "wan" else "yes" for family in FAMILIES]
    assert rows["choosy"] == [*yes, "none", "w8", "a8"]
    assert rows["nowhere"] == [*("no" for _ in FAMILIES), "none", "-"]
    assert rows["toy"][-2:] == ["w2,4-8,16", "a2-8,16"]
    assert rows["fp"][-1] == "fp"
    assert rows["gone"] == ["broken" for _ in FAMILIES]


def test_every_no_has_its_reason_below(listed: list[str]) -> None:
    others = ", ".join(family for family in FAMILIES if family != "wan")
    assert "choosy on wan: no: no fold for two experts" in listed
    widths = "w4a8, w4a6, w4a4, w8a16, w4a16"
    assert f"choosy on {others}: not at {widths}: int8 only, never this" in listed
    assert "nowhere: no at w8a8: needs a GPU" in listed
    assert any(line.startswith("gone: method 'gone'") for line in listed)


def test_an_answer_is_remembered_until_something_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.plan import registry

    name = "baselines.rtn:RTN"
    first = registry.support(name, ("cogvideox",), ("w4a4",), tmp_path)
    assert first.refused == {"cogvideox": {}}
    monkeypatch.setattr("harness.plan.registry.load_method", _fail)
    assert registry.support(name, ("cogvideox",), ("w4a4",), tmp_path) == first
    monkeypatch.setattr("harness.plan.registry._installed", lambda: "one more library")
    with pytest.raises(AssertionError, match="asked again"):
        registry.support(name, ("cogvideox",), ("w4a4",), tmp_path)


def _fail(name: str) -> None:
    raise AssertionError(f"{name} was asked again")


def test_every_registered_method_says_yes_or_why_not() -> None:
    from harness.plan.registry import methods

    for name in methods():
        method = load_method(name)
        for family in FAMILIES:
            for bits in ("w4a4", "w4a16", "w2a2"):
                answer = method.supports(family, BitSpec.parse(bits))
                assert answer is None or answer.reason, name


@pytest.mark.parametrize(
    ("bits", "text"),
    [
        (BITS, "w2-8,16 a2-8,16"),
        (("w4a16", "w8a16"), "w4,8 a16"),
        (("w8a8",), "w8 a8"),
        (("w8a8", "w4a16"), "w4 a16, w8 a8"),
        ((), ""),
    ],
)
def test_widths_are_written_short(bits: tuple[str, ...], text: str) -> None:
    assert widths_text(bits) == text


def test_metrics_say_what_they_are_and_what_they_still_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path))
    done = CliRunner().invoke(listing, ["metrics"], catch_exceptions=False)
    rows = dict(line.split(maxsplit=1) for line in done.output.splitlines())
    assert {"psnr_db", "lpips", "clip", "fvd", *SETS, *JUDGED} <= rows.keys()
    assert rows["scene"] == (
        "VBench semantic, VBench's prompts only; vbench is not installed: harness fetch vbench"
    )
    assert rows["subject_consistency"].startswith("VBench quality, any prompts; ")


def test_metrics_with_an_environment_name_their_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_worker(tmp_path, monkeypatch)
    environment.register(str(write_environment(tmp_path / "scoring")))
    done = CliRunner().invoke(listing, ["metrics"], catch_exceptions=False)
    rows = dict(line.split(maxsplit=1) for line in done.output.splitlines())
    assert rows["temporal_flickering"].endswith("; ready")
    assert rows["color"].endswith("; needs detectron2: docs/vbench.md")
    assert rows["scene"].endswith("; harness fetch vbench-weights --dimension scene")
