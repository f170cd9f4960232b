"""Call ``vbench.VBench(...).evaluate(...)`` as its users do; a script for the scoring interpreter.

``python evaluate.py SPEC``: a JSON file with ``weights``, ``videos`` (a folder), ``out``,
``dimensions``, for ``mode`` ``vbench_standard`` a ``full_info``, and ``no_grad`` where scene would
need 20 GB for what it forgets to switch off. Only what the package needs to import is put in place;
nothing that it does later is changed. One call per dimension, since an exception in one would lose
the others. Prints ``{dimension: [aggregate, {file name: raw}]}``.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from vbench_worker import compat


def evaluate(spec: dict[str, Any]) -> dict[str, Any]:
    """Results of all dimensions."""
    import torch
    from vbench import VBench

    # CPU arithmetic may depend on the number of threads.
    torch.set_num_threads(1)
    torch.set_grad_enabled(not spec.get("no_grad", False))
    judge = VBench(torch.device("cpu"), spec.get("full_info", ""), spec["out"])
    results = {}
    for dimension in spec["dimensions"]:
        judge.evaluate(
            videos_path=spec["videos"],
            name=dimension,
            dimension_list=[dimension],
            local=True,
            mode=spec.get("mode", "custom_input"),
        )
        path = Path(spec["out"]) / f"{dimension}_eval_results.json"
        aggregate, rows = json.loads(path.read_text(encoding="utf-8"))[dimension]
        raw = {Path(row["video_path"]).name: row["video_results"] for row in rows}
        results[dimension] = [aggregate, raw]
    return results


def main() -> None:
    """Evaluate what the file asks for."""
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    compat.surroundings(Path(spec["weights"]))
    compat.torchvision_schemas()
    compat.packaging_in_pkg_resources()
    with contextlib.redirect_stdout(sys.stderr):
        results = evaluate(spec)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
