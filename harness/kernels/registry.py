"""The kernels that are installed, this package's and those of others, by entry point."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from harness.errors import HarnessError, UsageError
from harness.plug_in import load

if TYPE_CHECKING:
    from harness.kernels.contract import Kernel

GROUP = "harness.kernels"
AUTO, OFF = "auto", "off"

_FIRST = ("x86-int8", "onednn-int8", "int-mm")
"""This package's kernels, in the order in which they are preferred."""


class BrokenKernelError(HarnessError):
    """A kernel's file cannot be imported."""


def kernel_names() -> tuple[str, ...]:
    """Every installed kernel in the order of preference: our own, then those of others by name."""
    found = _points()
    return (*(n for n in _FIRST if n in found), *sorted(n for n in found if n not in _FIRST))


def check_setting(setting: str) -> None:
    """Refuse what ``[execution] kernels`` cannot be.

    Raises:
        UsageError: It is neither ``auto`` nor ``off`` nor an installed kernel.
    """
    if setting not in (AUTO, OFF, *kernel_names()):
        raise UsageError(
            f"kernels is '{setting}', which is no installed kernel",
            f"choose {AUTO}, {OFF} or one of {', '.join(kernel_names())}",
        )


def versions() -> dict[str, str]:
    """Distribution and version behind each kernel that is not this package's own."""
    return {
        name: f"{point.dist.name} {point.dist.version}" if point.dist else "unknown"
        for name, point in sorted(_points().items())
        if not point.module.startswith("harness.kernels")
    }


def load_kernel(name: str) -> Kernel:
    """Load a kernel.

    Raises:
        UsageError: There is none of that name.
        BrokenKernelError: Its file cannot be imported.
    """
    check_setting(name)
    found: Kernel = load("kernel", name, _points()[name], BrokenKernelError)
    return found


def _points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}
