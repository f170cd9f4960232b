"""The approximate mode: feature networks in bfloat16, only where it is asked for.

AMT and RAFT stay in float32: they gain little, and a pixel more or less decides a verdict.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from vbench_worker.protocol import BFLOAT16

if TYPE_CHECKING:
    from vbench_worker.judges import Settings


def in_precision(model: Any, settings: Settings) -> Any:
    """The model itself, or, where bfloat16 is asked for, one that computes under autocast."""
    return Autocast(model, settings.device.type) if settings.precision == BFLOAT16 else model


class Autocast:
    """A model whose calls compute in bfloat16 where autocast does and answer in float32."""

    def __init__(self, model: Any, device_type: str) -> None:
        self._model = model
        self._device_type = device_type

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._model, name)
        computes = name.startswith("encode_") or name == "generate"
        return self._cast(attribute) if computes else attribute

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Call the model."""
        return self._cast(self._model)(*args, **options)

    def _cast(self, function: Any) -> Any:
        def called(*args: Any, **options: Any) -> Any:
            with torch.autocast(self._device_type, dtype=torch.bfloat16):
                return _to_float(function(*args, **options))

        return called


def _to_float(answer: Any) -> Any:
    if isinstance(answer, torch.Tensor):
        return answer.float() if answer.is_floating_point() else answer
    if isinstance(answer, dict):
        return {name: _to_float(value) for name, value in answer.items()}
    if isinstance(answer, (list, tuple)):
        return type(answer)(_to_float(value) for value in answer)
    return answer
