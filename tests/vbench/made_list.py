"""A prompt list in the shape of VBench's with made-up texts, for machines without the package."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from harness.vbench.suites import GROUPS

if TYPE_CHECKING:
    from pathlib import Path

AUXILIARY = {
    "object_class": {"object": "kettle"},
    "multiple_objects": {"object": "kettle and spoon"},
    "color": {"color": "teal"},
    "spatial_relationship": {
        "spatial_relationship": {
            "object_a": "kettle",
            "object_b": "spoon",
            "relationship": "on the left of",
        }
    },
    "scene": {"scene": {"scene": "quarry"}},
    "appearance_style": {"appearance_style": "woodcut"},
}


def rows() -> list[dict[str, Any]]:
    """As many entries for each group of dimensions as VBench has."""
    made: list[dict[str, Any]] = []
    for group, count in GROUPS.items():
        for i in range(count):
            row: dict[str, Any] = {
                "prompt_en": f"made-up {group[0]} no. {i}",
                "dimension": list(group),
            }
            known = {name: AUXILIARY[name] for name in group if name in AUXILIARY}
            made.append(row | ({"auxiliary_info": known} if known else {}))
    return made


def write(folder: Path, entries: list[dict[str, Any]] | None = None) -> Path:
    """Write a list where a package would have it."""
    path = folder / "VBench_full_info.json"
    path.write_text(json.dumps(rows() if entries is None else entries), encoding="utf-8")
    return path
