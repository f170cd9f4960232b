"""Where numbers come from: the cohort that paired values must share, and what else one may ask.

Versions are read from installed metadata and devices from the system, so that planning needs no
torch.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import UsageError
from harness.store.store import now

if TYPE_CHECKING:
    from collections.abc import Iterable

    from harness.spec import GenSpec

DISTRIBUTION = "vdit-quant-harness"
DETERMINISM = "deterministic algorithms, warn only"
PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "numpy",
    "scipy",
    "torchmetrics",
    "av",
    "safetensors",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """What computes.

    Attributes:
        id: ``cpu``, ``cuda``, ``cuda:1``: what torch is told.
        name: ``NVIDIA H100 80GB HBM3``: what the cohort says.
    """

    id: str
    name: str


def package_version(name: str) -> str:
    """Version of an installed package, empty when it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def find_device(wanted: str | None) -> Device:
    """Resolve the device by the system's own lists.

    Args:
        wanted: ``cpu``, ``cuda`` or ``cuda:<index>``; None for a CUDA device where there is one.

    Raises:
        UsageError: The name cannot be read or there is no such device.
    """
    gpus = cuda_names()
    if wanted is None:
        wanted = "cuda" if gpus else "cpu"
    kind, _, index = wanted.partition(":")
    if wanted == "cpu":
        return Device(id="cpu", name=cpu_name())
    if kind != "cuda" or (index and not index.isdigit()):
        raise UsageError(f"device '{wanted}' is unknown", "known: cpu, cuda, cuda:<index>")
    if int(index or 0) >= len(gpus):
        raise UsageError(
            f"device '{wanted}' is not there: {len(gpus)} CUDA devices can be used",
            "choose --device cpu, or see `harness doctor`",
        )
    return Device(id=wanted, name=gpus[int(index or 0)])


def find_devices(wanted: str | None) -> tuple[Device, ...]:
    """Resolve a list of devices, ``cuda:0,cuda:1``; one worker computes on each.

    Args:
        wanted: Names as ``find_device`` knows them, separated by commas; ``cpu`` may stand several
            times. None for one device of its choice.

    Raises:
        UsageError: A name is unknown or stands twice, or the devices are of two kinds: clips of one
            table must come from one kind.
    """
    if wanted is None or "," not in wanted:
        return (find_device(wanted),)
    names = [part.strip() for part in wanted.split(",") if part.strip()]
    found = tuple(find_device("cuda:0" if name == "cuda" else name) for name in names)
    if not found:
        raise UsageError(f"device '{wanted}' is unknown", "known: cpu, cuda, cuda:<index>")
    for device in found:
        if device.id != "cpu" and sum(other.id == device.id for other in found) > 1:
            raise UsageError(
                f"device '{device.id}' is named twice",
                "--jobs sets how many workers share a device",
            )
    if other := next((d for d in found if d.name != found[0].name), None):
        raise UsageError(
            f"'{found[0].id}' is a {found[0].name} and '{other.id}' a {other.name}: clips of one "
            "table must come from one kind of device",
            "name devices of one kind, or run them apart",
        )
    return found


@cache
def cuda_names() -> tuple[str, ...]:
    """Names of the CUDA devices that the installed torch can use; asks the driver, not torch."""
    if package_version("torch").endswith("+cpu") or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return ()
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver: a machine without a GPU
        return ()
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return tuple(str(pynvml.nvmlDeviceGetName(handle)) for handle in handles)
    finally:
        pynvml.nvmlShutdown()


def cpu_name() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cohort(
    device: Device, gen: GenSpec, threads: int, *, cleaners: Iterable[str] = ()
) -> dict[str, Any]:
    """What two clips must share to be compared frame by frame.

    Args:
        device: What computes.
        gen: Generation settings.
        threads: Threads a worker computes with.
        cleaners: Distributions that clean the prompts of this family where they are installed, so
            that the text encoder sees another text without them.
    """
    cleaning = {f"text cleaner {name}": package_version(name) or "none" for name in cleaners}
    return {
        "device": device.name,
        "torch": package_version("torch"),
        "diffusers": package_version("diffusers"),
        "transformers": package_version("transformers"),
        "dtype": gen.dtype,
        "attention": "default",
        "compile": "off",
        "determinism": DETERMINISM,
        "threads": threads,
        **cleaning,
    }


def provenance(command: list[str]) -> dict[str, Any]:
    """What made a run: versions, commit, machine, command line, time."""
    return {
        "harness": package_version(DISTRIBUTION),
        "commit": _commit(),
        "python": sys.version.split()[0],
        "packages": {name: package_version(name) for name in PACKAGES},
        "machine": {
            "system": platform.platform(),
            "cpu": cpu_name(),
            "cores": cores(),
            "gpus": list(cuda_names()),
        },
        "command": command,
        "at": now(),
    }


def _commit() -> str:
    """Commit of the source tree, ``+`` appended when files differ; empty when installed."""
    tree = Path(__file__).resolve().parents[2]
    if not (tree / ".git").exists():
        return ""

    def git(*arguments: str) -> str:
        found = subprocess.run(
            ["git", "-C", str(tree), *arguments], capture_output=True, text=True, check=False
        )
        return found.stdout.strip() if found.returncode == 0 else ""

    try:
        commit = git("rev-parse", "HEAD")
        return commit + ("+" if commit and git("status", "--porcelain", "-uno") else "")
    except FileNotFoundError:  # no git on this machine
        return ""
