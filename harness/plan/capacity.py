"""What memory a machine has: asked of driver and system, not of torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from harness.store.provenance import Device

_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
"""Where Linux says what a container may use: version 2 and 1 of control groups."""


def host_bytes() -> int:
    """Bytes of main memory that this process may use at most: a container's limit, else all."""
    total = int(psutil.virtual_memory().total)
    for path in _LIMITS:
        try:
            text = path.read_text(encoding="utf-8").strip()
        except OSError:
            continue
        if text.isdigit():
            return min(total, int(text))
    return total


def device_bytes(device: Device) -> int:
    """Bytes of a device's memory; of a processor, those of the host."""
    kind, _, index = device.id.partition(":")
    if kind != "cuda":
        return host_bytes()
    import pynvml

    pynvml.nvmlInit()
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(int(index or 0))
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
    finally:
        pynvml.nvmlShutdown()
