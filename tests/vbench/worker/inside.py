"""Runs the checks that need the official package; a script for the scoring interpreter.

``python inside.py WEIGHTS CLIP``: a folder of random weights and a small clip. Prints a JSON
object: for each function named ``check_*`` of the modules named so, beside this file, an empty
string, or how it failed. ``test_inside.py`` makes a test of each.
"""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from pathlib import Path

from vbench_worker import compat

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Run all checks."""
    sys.path.insert(0, str(HERE))
    from checking import WEIGHTS

    compat.prepare(WEIGHTS)
    import torch

    torch.set_num_threads(1)
    found = {}
    for path in sorted(HERE.glob("check_*.py")):
        for name, check in list(vars(importlib.import_module(path.stem)).items()):
            if name.startswith("check_"):
                try:
                    check()
                    found[name] = ""
                except Exception:
                    found[name] = traceback.format_exc()
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
