"""Signs of life of a worker between its reports: modules that run, bytes that are read or written.

A run ends a worker that is silent (``[execution] stall_s``). A clip of a large model, a download or
the loading of weights may take longer than that without a report of its own.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from harness.store.provenance import find_device, package_version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

    from harness.task import Job

INTERVAL_S = 5.0
LEAST_BYTES = 1 << 20
"""Bytes read or written in an interval that are work; less is what waiting costs."""

_IO = Path("/proc/self/io")
_COUNTED = ("rchar", "wchar", "read_bytes", "write_bytes")


class Pulse:
    """Tells of work as long as there is any, a few times a minute.

    Args:
        tell: Called from a thread of its own when there was work since the last time.
        computing: Take processor time of this process and its children for work as well.
    """

    def __init__(self, tell: Callable[[], None], *, computing: bool = False) -> None:
        self._tell, self._computing = tell, computing
        self._beats = 0
        self._ended = threading.Event()
        self._seen = (0, _bytes_moved(), self._computed())

    def beat(self, *_: Any) -> None:
        """Something was computed."""
        self._beats += 1

    def look(self) -> None:
        """Tell, if there was work since the last look."""
        now = (self._beats, _bytes_moved(), self._computed())
        beats, moved, seconds = (a - b for a, b in zip(now, self._seen, strict=True))
        self._seen = now
        if beats or moved >= LEAST_BYTES or seconds >= INTERVAL_S / 2:
            self._tell()

    def _computed(self) -> float:
        """Processor seconds of this process and its children, 0 where they do not count."""
        if not self._computing:
            return 0.0
        this = psutil.Process()
        total = 0.0
        for process in (this, *this.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Look every few seconds while the block runs."""

        def watch() -> None:
            while not self._ended.wait(INTERVAL_S):
                self.look()

        thread = threading.Thread(target=watch, daemon=True, name="pulse")
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    @contextlib.contextmanager
    def feeling_modules(self) -> Iterator[None]:
        """Count every call of a torch module while the block runs."""
        from torch.nn.modules.module import register_module_forward_pre_hook

        handle = register_module_forward_pre_hook(self.beat)
        try:
            yield
        finally:
            handle.remove()


@contextlib.contextmanager
def calls_said(
    module: nn.Module, report: Callable[[float, str], None], share: float, text: str
) -> Iterator[None]:
    """Report each call of a denoiser while the block runs.

    Args:
        module: The denoiser.
        report: Progress function.
        share: Of the work, done before.
        text: What is made, before the number of the call.
    """
    numbers = itertools.count(1)

    def say(*_: Any) -> None:
        report(share, f"{text}, denoiser call {next(numbers)}")

    handle = module.register_forward_pre_hook(say)
    try:
        yield
    finally:
        handle.remove()


def _bytes_moved() -> int:
    """Bytes that this process has read and written; 0 where the system does not say."""
    try:
        lines = _IO.read_text().splitlines()
    except OSError:  # no Linux
        return 0
    pairs = (line.partition(": ")[::2] for line in lines)
    return sum(int(value) for name, value in pairs if name in _COUNTED)


def circumstances(job: Job) -> dict[str, Any]:
    """What an interrupted calibration or recording must find as it left it, beside its key."""
    versions = {n: package_version(n) for n in ("torch", "diffusers", "transformers", "numpy")}
    return {"device": find_device(job.device).name, "threads": job.threads, **versions}
