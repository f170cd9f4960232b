from __future__ import annotations

import pytest

from harness.errors import UsageError
from harness.score.names import expand
from harness.vbench.dimensions import DIMENSIONS, EIGHT


def test_a_set_stands_for_its_dimensions_in_order() -> None:
    assert expand(["vbench-8"]) == EIGHT
    assert expand(["vbench-16"]) == tuple(DIMENSIONS)
    assert expand(["none"]) == ()


def test_a_metric_that_is_named_twice_is_asked_for_once() -> None:
    assert expand(["scene", "vbench-8", "clip", "scene"])[0] == "scene"
    assert len(expand(["scene", "vbench-8", "clip"])) == 9


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="metric 'scenes' is unknown") as caught:
        expand(["scenes"])
    assert "did you mean scene?" in caught.value.hint


def test_nothing_beside_something_is_refused() -> None:
    with pytest.raises(UsageError, match="'none' stands beside others"):
        expand(["none", "scene"])
