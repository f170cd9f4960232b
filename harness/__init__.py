"""Compare post-training quantization methods for video diffusion transformers on equal terms.

From Python:

    pipeline = harness.load_pipeline("shapes")
    artifact = harness.quantize(pipeline, "rtn", bits="w4a6", out="my-artifact")
    harness.load_quantized(pipeline, artifact.folder)
    run = harness.run_experiment(methods=["rtn", "s2q"], bits=["w4a6"], limit=4)
    run.frame()

Plug-ins import ``harness.api`` and ``harness.quant``; ``harness --help`` is the command line.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.door import Artifact as Artifact
    from harness.door import load_pipeline as load_pipeline
    from harness.door import load_quantized as load_quantized
    from harness.door import load_run as load_run
    from harness.door import quantize as quantize
    from harness.door import run_experiment as run_experiment
    from harness.errors import HarnessError as HarnessError
    from harness.store.records import Run as Run

_HOMES = {
    "Artifact": "harness.door",
    "HarnessError": "harness.errors",
    "Run": "harness.store.records",
    "load_pipeline": "harness.door",
    "load_quantized": "harness.door",
    "load_run": "harness.door",
    "quantize": "harness.door",
    "run_experiment": "harness.door",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    # `import harness` must stay free of torch, so what needs torch is imported when it is named.
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'harness' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
