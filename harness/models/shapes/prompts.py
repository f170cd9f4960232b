"""Write the prompts of the bundled model: `python -m harness.models.shapes.prompts`.

The evaluation prompts are combinations that training never sees; the calibration prompts are
training combinations, so the two are disjoint. Each is drawn so that every beginning of the list is
balanced over the attributes: a run of 16 prompts sees each colour about twice.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.models.shapes.world import (
    Attributes,
    caption,
    held_out_combinations,
    training_combinations,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

SEED = 0
EVAL_COUNT, CALIB_COUNT = 128, 64


def balanced(pool: Sequence[Attributes], count: int, seed: int) -> list[Attributes]:
    """Draw combinations one by one, each time one whose values were drawn least so far."""
    rng = np.random.default_rng(seed)
    left = [pool[i] for i in rng.permutation(len(pool))]
    seen: Counter[tuple[str, str]] = Counter()
    chosen: list[Attributes] = []

    def crowding(a: Attributes) -> tuple[int, int]:
        # A value with many siblings (colour, motion) must not be outvoted by the others.
        counts = [seen[item] for item in a.as_dict().items()]
        return sum(c * c for c in counts) + 3 * (counts[1] ** 2 + counts[3] ** 2), max(counts)

    for _ in range(count):
        best = min(left, key=crowding)
        left.remove(best)
        chosen.append(best)
        seen.update(best.as_dict().items())
    return chosen


def lines(name: str, chosen: Sequence[Attributes]) -> str:
    """Return the JSON lines of a list of prompts."""
    rows = [
        {"id": f"{name}-{number:03d}", "text": caption(a), "tags": a.as_dict()}
        for number, a in enumerate(chosen)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def files() -> dict[str, str]:
    """Return the name and the content of each prompt file."""
    evaluation = balanced(held_out_combinations(), EVAL_COUNT, SEED)
    calibration = balanced(training_combinations(), CALIB_COUNT, SEED + 1)
    return {
        "shapes-eval.jsonl": lines("shapes-eval", evaluation),
        "shapes-calib.jsonl": lines("shapes-calib", calibration),
    }


def evaluation_attributes(count: int) -> list[Attributes]:
    """Return what the first evaluation prompts ask for."""
    return balanced(held_out_combinations(), EVAL_COUNT, SEED)[:count]


def main() -> int:
    """Write the files into `prompts/` of the current folder."""
    folder = Path("prompts")
    folder.mkdir(exist_ok=True)
    for name, content in files().items():
        (folder / name).write_text(content, encoding="utf-8")
        print(folder / name)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
