"""aesthetic_quality and appearance_style with miniature CLIPs; ``test_heavy`` has the full ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from harness.vbench.environment import find
from tests.vbench.driving import run_script
from tests.vbench.worker.both_ways import (
    SCRIPTS,
    by_worker,
    officially,
    prompts_of,
    write_clips,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.vbench.driving import Answer

DIMENSIONS = ("aesthetic_quality", "appearance_style")


@pytest.fixture(scope="module")
def weights(scoring_python: Path, random_weights: Path) -> Path:
    """The light weights with a miniature CLIP ViT-L/14 beside them."""
    script = SCRIPTS / "random_heavy_weights.py"
    ids = ("clip-vit-l-14", "laion-aesthetic-head")
    run_script(scoring_python, script, random_weights, "--ids", *ids)
    return random_weights


@pytest.fixture(scope="module")
def asked(
    scoring_python: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Path], list[dict[str, Any]]]:
    """Two clips for each dimension."""
    environment = find(str(scoring_python))
    assert environment is not None
    entries = [e for d in DIMENSIONS for e in prompts_of(environment.full_info, d)[:2]]
    folder = tmp_path_factory.mktemp("clip-models")
    return scoring_python, write_clips(folder / "clips", entries), entries


@pytest.fixture(scope="module")
def answer(
    asked: tuple[Path, list[Path], list[dict[str, Any]]],
    weights: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Answer:
    """What the worker says."""
    python, clips, entries = asked
    folder = tmp_path_factory.mktemp("plain")
    return by_worker(python, folder, clips, entries, DIMENSIONS, weights=weights)[0]


def test_values_are_those_of_the_official_package(
    asked: tuple[Path, list[Path], list[dict[str, Any]]],
    answer: Answer,
    weights: Path,
    tmp_path: Path,
) -> None:
    python, clips, entries = asked
    values, aggregates, _ = officially(
        python, tmp_path, clips, entries, DIMENSIONS, weights=weights
    )

    assert {key: score["value"] for key, score in answer.scores.items()} == values
    assert len(set(values.values())) == 4
    for dimension in DIMENSIONS:
        rows = [s for s in answer.scores.values() if s["dimension"] == dimension]
        weighed = sum(r["value"] * r["weight"] for r in rows) / sum(r["weight"] for r in rows)
        assert weighed == pytest.approx(aggregates[dimension], rel=1e-12)
    assert set(answer.counts["models"].values()) == {1}
    assert answer.counts["decodes"] == len(clips)


def test_batches_of_frames_do_not_change_a_value_beyond_rounding(
    asked: tuple[Path, list[Path], list[dict[str, Any]]],
    answer: Answer,
    weights: Path,
    tmp_path: Path,
) -> None:
    python, clips, entries = asked
    batched, _ = by_worker(python, tmp_path, clips, entries, DIMENSIONS, weights=weights, batch=4)
    for key, score in answer.scores.items():
        # Matrix products of another height add up in another order.
        assert batched.value(key) == pytest.approx(score["value"], abs=1e-6)


def test_the_approximate_mode_is_near_and_is_not_the_same(
    asked: tuple[Path, list[Path], list[dict[str, Any]]],
    answer: Answer,
    weights: Path,
    tmp_path: Path,
) -> None:
    python, clips, entries = asked
    rough, _ = by_worker(
        python, tmp_path, clips, entries, DIMENSIONS, weights=weights, precision="bfloat16"
    )
    for key, score in answer.scores.items():
        assert rough.value(key) != score["value"]
        assert rough.value(key) == pytest.approx(score["value"], abs=2e-2)


def test_a_job_that_does_not_name_the_style_is_an_error_and_not_a_score(
    asked: tuple[Path, list[Path], list[dict[str, Any]]], weights: Path, tmp_path: Path
) -> None:
    python, clips, entries = asked
    bare = [{**e, "auxiliary_info": {}} for e in entries]
    answer, _ = by_worker(python, tmp_path, clips, bare, DIMENSIONS, weights=weights)

    assert {s["dimension"] for s in answer.scores.values()} == {"aesthetic_quality"}
    troubles = answer.of("trouble")
    assert {t["dimension"] for t in troubles} == {"appearance_style"}
    assert all(t["status"] == "error" for t in troubles)
    assert all("needs the auxiliary entry" in t["detail"] for t in troubles)
