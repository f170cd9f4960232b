"""Print what training, simulated inference and loading take, here and in an older tree.

    python tools/memory_bench.py [--against PATH]

One block, or four, of CogVideoX-2B's width with random weights, on one thread of the processor.
``--against`` names a checkout of this repository that is measured in the same way and stands in
the column ``before``: ``git worktree add /tmp/before 52f6e95``. Bytes of training and layers are
those of every tensor alive (``harness/measure/traced.py``); the peak of loading is a process'.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PROBE = ROOT / "tools/memory_probe.py"


def probe(tree: Path, *arguments: str) -> dict[str, Any]:
    """One measurement of a tree, in a process of its own.

    Raises:
        SystemExit: It failed; its last line is said.
    """
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1",
                   "HARNESS_EXPANDED_MB": "0"}  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(PROBE), *arguments], cwd=tree, env=environment, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise SystemExit(f"{arguments[0]} failed in {tree}: {last}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(tree: Path) -> dict[str, float]:
    """Every figure of a tree, by what it is."""
    training, packed = probe(tree, "training"), probe(tree, "packed")
    with tempfile.TemporaryDirectory() as folder:
        made = probe(tree, "make", folder)
        load = probe(tree, "load", folder)
    return {
        "training a block: bytes a token": training["bytes_a_token"],
        "training a block: bytes whatever the tokens": training["fixed_bytes"],
        "training a block: seconds of one step and its statistics": training["seconds"],
        "simulated 4-bit layer: resident bytes a weight": packed["bytes_a_weight"],
        "simulated 4-bit layer: extra bytes of a call beside one expanded weight, over its input": (
            packed["extra_over_input"]
        ),
        "simulated 4-bit layer: seconds a call": packed["seconds"],
        "loading a 4-bit artifact: peak over the 16-bit denoiser": (
            load["peak_bytes"] / (2 * made["parameters"])
        ),
    }


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, help="an older checkout")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    trees = {"now": ROOT}
    if arguments.against is not None:
        if not (arguments.against / "harness/__init__.py").is_file():
            parser.error(f"'{arguments.against}' is no checkout of this repository")
        trees = {"before": arguments.against.resolve(), **trees}
    found = {name: measure(tree) for name, tree in trees.items()}
    if arguments.json:
        print(json.dumps(found, indent=1))
        return 0
    width = max(map(len, found["now"]))
    print(f"{'':<{width}}" + "".join(f"{name:>16}" for name in found))
    for row in found["now"]:
        print(f"{row:<{width}}" + "".join(f"{every[row]:>16,.4g}" for every in found.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
