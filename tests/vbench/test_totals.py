from __future__ import annotations

import pytest

from harness.vbench.dimensions import DIMENSIONS
from harness.vbench.totals import totals

GIVEN = {
    "subject_consistency": 0.96,
    "background_consistency": 0.97,
    "temporal_flickering": 0.99,
    "motion_smoothness": 0.98,
    "appearance_style": 0.24,
    "temporal_style": 0.25,
    "overall_consistency": 0.27,
}
VECTOR: dict[str, float | None] = dict.fromkeys(DIMENSIONS, 0.5) | GIVEN


def test_the_scores_are_those_of_the_official_script() -> None:
    # scripts/cal_final_score.py of the official repository, run on these aggregates
    found = totals(VECTOR)
    assert found.quality == pytest.approx(0.780848836899152, abs=1e-12)
    assert found.semantic == pytest.approx(0.5974247184224427, abs=1e-12)
    assert found.total == pytest.approx(0.7441640132038101, abs=1e-12)
    assert found.missing == ()


@pytest.mark.parametrize("name", list(DIMENSIONS))
def test_one_missing_dimension_leaves_no_score(name: str) -> None:
    for official in ({k: v for k, v in VECTOR.items() if k != name}, VECTOR | {name: None}):
        found = totals(official)
        assert (found.quality, found.semantic, found.total) == (None, None, None)
        assert found.missing == (name,)


def test_unfiltered_flickering_does_not_stand_in_for_the_official_one() -> None:
    official = {k: v for k, v in VECTOR.items() if k != "temporal_flickering"}
    assert totals(official | {"temporal_flickering_unfiltered": 0.99}).missing == (
        "temporal_flickering",
    )


def test_what_lies_outside_the_official_range_is_not_clamped() -> None:
    low, high = totals(VECTOR | {"motion_smoothness": 0.5}), totals(VECTOR | {"scene": 1.0})
    found = totals(VECTOR)
    assert found.quality is not None
    assert found.semantic is not None
    assert low.quality is not None
    assert high.semantic is not None
    assert low.quality == pytest.approx(found.quality - (0.98 - 0.5) / (0.9975 - 0.706) / 6.5)
    assert high.semantic == pytest.approx(found.semantic + 0.5 / 0.8222 / 9)


def test_perfect_dimensions_score_one() -> None:
    found = totals({name: d.high for name, d in DIMENSIONS.items()})
    assert (found.quality, found.semantic, found.total) == pytest.approx((1.0, 1.0, 1.0))
