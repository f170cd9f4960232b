"""The worker's values of the heavy dimensions are those of the official package, bit for bit.

``python -m pytest -m heavy tests/vbench`` runs these: half an hour on one core, at most 7 GB of
memory, and 2 GB of random weights on the disk at a time.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
import torch

from harness.vbench.environment import find
from tests.vbench.worker.both_ways import (
    SCRIPTS,
    by_worker,
    officially,
    prompts_of,
    run,
    write_clips,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.heavy

GROUPS = {
    "aesthetic_quality": ("clip-vit-l-14", "laion-aesthetic-head"),
    "overall_consistency temporal_style": ("viclip-l-14",),
    "scene": ("tag2text-swin",),
    "human_action": ("umt-l16",),
}
"""Dimensions that one process scores with the same models, and the random files of these."""

PICKED = {"human_action": (0, 50)}
"""Prompts by number in the dimension: the random UMT answers the first and not the second."""


@pytest.fixture
def weights(tmp_path: Path) -> Iterator[Path]:
    """A folder for random weights that does not outlive the test: it takes gigabytes."""
    folder = tmp_path / "weights"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("group", GROUPS)
def test_the_worker_gives_the_values_of_the_official_package(
    group: str,
    scoring_python: Path,
    tmp_path: Path,
    weights: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    environment = find(str(scoring_python))
    assert environment is not None
    dimensions = group.split()
    entries = []
    for dimension in dimensions:
        known = prompts_of(environment.full_info, dimension)
        entries += [known[i] for i in PICKED.get(dimension, (0, 1))]
    script = SCRIPTS / "random_heavy_weights.py"
    run(scoring_python, "-P", script, weights, "--full", "--ids", *GROUPS[group])
    clips = write_clips(tmp_path / "clips", entries)
    asked = (scoring_python, tmp_path, clips, entries, dimensions)

    answer, mine = by_worker(*asked, weights=weights)
    values, aggregates, theirs = officially(*asked, weights=weights)

    with capsys.disabled():
        print(f"\n{group}: worker {mine.seconds:.0f} s, {mine.peak_gb:.1f} GB;", end=" ")
        print(f"official {theirs.seconds:.0f} s, {theirs.peak_gb:.1f} GB")
        for key, raw in values.items():
            print(f"  {key}: official {raw!r}, worker {answer.scores[key]['value']!r}")
    assert {key: score["value"] for key, score in answer.scores.items()} == values
    assert {key: score["facts"]["official"] for key, score in answer.scores.items()} == values
    for dimension in dimensions:
        rows = [s for s in answer.scores.values() if s["dimension"] == dimension]
        weighed = sum(r["value"] * r["weight"] for r in rows) / sum(r["weight"] for r in rows)
        assert weighed == pytest.approx(aggregates[dimension], rel=1e-12)
    assert set(answer.counts["models"].values()) == {1}
    assert answer.counts["decodes"] == len(clips)


def test_a_file_without_a_tensor_of_umt_is_an_error_and_not_a_random_model(
    scoring_python: Path, tmp_path: Path, weights: Path
) -> None:
    environment = find(str(scoring_python))
    assert environment is not None
    entries = prompts_of(environment.full_info, "human_action")[:1]
    clips = write_clips(tmp_path / "clips", entries)
    path = weights / "umt_model" / "l16_ptk710_ftk710_ftk400_f16_res224.pth"
    path.parent.mkdir()
    torch.save({"model": torch.zeros(1)}, path)

    dimensions = ["human_action"]
    asked = (scoring_python, tmp_path, clips, entries, dimensions)
    answer, _ = by_worker(*asked, weights=weights)

    (trouble,) = answer.of("trouble")
    assert trouble["status"] == "error"
    assert "holds no tensor of the model" in trouble["detail"]
    assert answer.scores == {}
