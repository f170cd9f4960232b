"""Peak memory of a stretch of work: the device's on CUDA, the process' resident set elsewhere."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_RESET = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


@contextmanager
def peak_memory(device: torch.device | str) -> Iterator[Callable[[], int]]:
    """Give a function that returns the peak in bytes since the block was entered.

    On Linux the resident peak is reset on entry; on other systems it includes what came before.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: int(torch.cuda.max_memory_allocated(device))
        return
    if _RESET.exists():
        _RESET.write_text("5")  # Linux: sets the peak (VmHWM) to what is resident now
    yield _peak_resident


def resident() -> int:
    """Bytes that this process has in memory now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def _peak_resident() -> int:
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
