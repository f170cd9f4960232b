"""Every registered method that quantizes passes the battery, on every family."""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import TYPE_CHECKING, Any

import pytest

from harness.method import resolve_options
from harness.models.families import FAMILIES
from harness.plan import registry
from harness.testing.conformance import FamilyConformance, MethodConformance

if TYPE_CHECKING:
    from harness.method import Method

QUICK = {"samples": 4, "epochs": 1, "iterations": 8, "timesteps": 2}
OURS = ("methods", "baselines")
UNQUANTIZED = ("control", "fp")
PENDING: tuple[str, ...] = ()
"""Methods that are announced in pyproject.toml and whose file is still to come."""

REGISTERED = {
    name: point
    for name, point in registry.methods().items()
    if point.value.split(".")[0] in OURS and name not in UNQUANTIZED
}
NAMES = tuple(sorted(set(REGISTERED) - set(PENDING)))
OTHER_FAMILIES = tuple(name for name in FAMILIES if name != "cogvideox")


def test_no_registered_method_is_left_out() -> None:
    assert set(PENDING) <= set(REGISTERED)
    there = {n for n, p in REGISTERED.items() if importlib.util.find_spec(p.module) is not None}
    assert there == set(NAMES)
    assert all(registry.load_method(name).unquantized for name in UNQUANTIZED)
    assert not any(registry.load_method(name).unquantized for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_quick_budget_is_made_of_options_that_the_method_has(name: str) -> None:
    method = registry.load_method(name)
    chosen = resolve_options(method, method.quick)
    assert all(getattr(chosen, option) == value for option, value in method.quick.items())
    assert chosen != method.Options() or not method.quick


def test_the_long_calibrations_have_a_quick_budget() -> None:
    short = {name for name in NAMES if registry.load_method(name).quick}
    assert short == {"flatquant", "ptq4dit", "qvdit", "s2q"}


def quick(method: Method) -> dict[str, Any]:
    known = {field.name for field in dataclasses.fields(method.Options)}
    return {k: v for k, v in QUICK.items() if k in known}


class TestEveryMethod(MethodConformance):
    """The whole battery, once for each method."""

    @pytest.fixture(scope="class", params=NAMES)
    @classmethod
    def method(cls, request: pytest.FixtureRequest) -> Method:
        return registry.load_method(request.param)

    @pytest.fixture(scope="class")
    @classmethod
    def options(cls, method: Method) -> dict[str, Any]:
        return quick(method)


class TestEveryMethodOnEveryFamily(FamilyConformance):
    """The short battery, once for each method and family."""

    @pytest.fixture(scope="class", params=OTHER_FAMILIES)
    @classmethod
    def family(cls, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture(scope="class", params=NAMES)
    @classmethod
    def method(cls, request: pytest.FixtureRequest) -> Method:
        return registry.load_method(request.param)

    @pytest.fixture(scope="class")
    @classmethod
    def options(cls, method: Method) -> dict[str, Any]:
        return quick(method)
