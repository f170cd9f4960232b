"""What a key says of how quantized layers are to be computed. Importing it needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.kernels.processor import integer_units, limits
from harness.kernels.registry import AUTO, OFF, versions
from harness.kernels.x86 import library
from harness.spec import SIMULATED
from harness.store.sources import sources_digest

if TYPE_CHECKING:
    from collections.abc import Mapping

OFF_REASON = "kernels are off"

_SOURCES = tuple(
    f"harness.kernels.{name}"
    for name in (
        "codes", "contract", "dispatch", "int_mm", "layer", "onednn", "product", "registry",
        "x86.kernel", "x86.rows", "x86.weight",
    )
)  # fmt: skip


def execution_key(execution: str, setting: str) -> str | Mapping[str, Any]:
    """How a row's layers compute, for the key of its clips and of its timing.

    Which kernel takes a layer follows from the artifact, the device, and what stands here, so that
    clips of two executions never have one key.

    Args:
        execution: What the row's method says: ``simulated``, a library, or nothing.
        setting: ``[execution] kernels``.

    Returns:
        ``execution`` itself where this package's kernels have no part in it.
    """
    if execution != SIMULATED or setting == OFF:
        return execution
    return {
        "kernels": setting,
        "units": integer_units(),
        "x86": library.units() and library.digest(),
        "limits": limits(),
        "plug-ins": versions(),
        "sources": sources_digest(_SOURCES),
    }


def holds_packed(setting: str, device: str) -> bool:
    """Whether the kernel that a setting comes to first multiplies 4-bit weights as they lie.

    Args:
        setting: ``[execution] kernels``.
        device: Where rows compute.
    """
    return device == "cpu" and setting in (AUTO, "x86-int8") and library.missing() is None
