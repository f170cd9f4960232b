"""Compare post-training quantization methods for video diffusion transformers on equal terms."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["load_quantized"]
_LAZY = {"load_quantized": "harness.quant.layers.artifact"}


def __getattr__(name: str) -> Any:
    # `import harness` must stay free of torch, so what needs torch is imported when it is named.
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'harness' has no attribute '{name}'")
