"""Every registered method that quantizes passes the battery."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest

from harness import registry
from harness.testing import MethodConformance

if TYPE_CHECKING:
    from harness.method import Method

QUICK = {"samples": 4, "epochs": 1, "iterations": 8, "timesteps": 2}
NAMES = ("ptq4dit", "rtn", "rtn-gptq", "s2q")


def test_the_battery_runs_on_every_method_of_this_repository() -> None:
    ours = {
        n
        for n, e in registry.methods().items()
        if e.value.split(".")[0] in ("methods", "baselines")
    }
    quantizing = {n for n in ours if not registry.load_method(n).unquantized}
    assert quantizing == set(NAMES)


class TestEveryMethod(MethodConformance):
    """The battery, once for each method."""

    @pytest.fixture(scope="class", params=NAMES)
    @classmethod
    def method(cls, request: pytest.FixtureRequest) -> Method:
        return registry.load_method(request.param)

    @pytest.fixture(scope="class")
    @classmethod
    def options(cls, method: Method) -> dict[str, Any]:
        known = {field.name for field in dataclasses.fields(method.Options)}
        return {k: v for k, v in QUICK.items() if k in known}
