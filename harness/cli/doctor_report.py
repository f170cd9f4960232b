"""``harness doctor --report``: what a bug report needs, as text to paste, and nothing private.

Versions are read from metadata and files, devices from the system, so that it works where torch
cannot be imported. Home folder and user name are taken out of the whole text at the end, because
any line may hold a path.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections import Counter
from importlib.metadata import PackageNotFoundError, distribution, entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from harness.store.provenance import DISTRIBUTION, package_version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Fact = tuple[str, str]

PACKAGES = (
    *("torch", "torchvision", "diffusers", "transformers", "accelerate", "safetensors"),
    *("huggingface-hub", "tokenizers", "sentencepiece", "numpy", "scipy", "pandas", "pydantic"),
    *("torchmetrics", "av", "decord", "torchao", "optimum-quanto", "bitsandbytes"),
    *("ftfy", "beautifulsoup4", "nvidia-ml-py"),
)
GROUPS = ("harness.methods", "harness.metrics")
VARIABLES = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE")
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
# What decides which kernels a processor takes: vector width, 8-bit and 16-bit products; as Linux
# spells them for x86 and for ARM.
FLAGS = (
    *("avx2", "f16c", "fma", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni"),
    *("avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimddp", "i8mm", "bf16", "sve", "sve2"),
)
_SECRET = re.compile("TOKEN|KEY|SECRET|PASSW", re.IGNORECASE)
_CPUINFO = Path("/proc/cpuinfo")
_MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")
_GIB = 2**30
_GB = 1e9


def report_text(checks: list[str]) -> str:
    """The report.

    Args:
        checks: What the checks of the doctor found, a line for each.
    """
    parts: dict[str, Callable[[], list[Fact]]] = {
        "harness": _harness,
        "machine": _machine,
        "gpus": _gpus,
        "packages": _packages,
        "vbench environment": _scoring,
        "plug-ins": _plug_ins,
        "environment variables": _variables,
        "store": _store,
    }
    text = [line for title, part in parts.items() for line in _section(title, part)]
    return without_owner("\n".join([*text, "checks", *(f"  {line}" for line in checks)]))


def without_owner(text: str) -> str:
    """Text without the home folder and without the user's name."""
    names, homes = _owner()
    for home in sorted(homes, key=len, reverse=True):
        text = re.sub(rf"{re.escape(home)}(?=\W|$)", "~", text)
    for name in names:
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "<user>", text)
    return text


def _owner() -> tuple[set[str], set[str]]:
    """Names of the user and paths of the home folder, as variables and the system say them."""
    names = {os.environ.get(name, "") for name in ("USER", "LOGNAME", "USERNAME")}
    homes = {str(Path.home()), os.path.realpath(Path.home())}
    try:
        import pwd

        entry = pwd.getpwuid(os.getuid())
    except (ImportError, KeyError):  # no such list on this system, or the user is not in it
        pass
    else:
        names.add(entry.pw_name)
        homes |= {entry.pw_dir, os.path.realpath(entry.pw_dir)}
    return names - {""}, {home.rstrip("/") for home in homes} - {""}


def _section(title: str, part: Callable[[], list[Fact]]) -> Iterator[str]:
    """A title and its facts; one that cannot be found out is said in their place."""
    yield title
    try:
        facts = part()
    except Exception as cause:  # a report of a broken machine must still be printed
        first = next(iter(str(cause).splitlines()), "")
        facts = [("cannot be found out", f"{type(cause).__name__}: {first}")]
    width = max((len(name) for name, _ in facts), default=0)
    for name, value in facts:
        yield f"  {name:<{width}}  {value}".rstrip()


def _harness() -> list[Fact]:
    from harness.store.provenance import provenance

    commit = provenance([])["commit"]
    return [
        ("version", package_version(DISTRIBUTION) or "is not installed"),
        ("commit", commit or "none; installed from a package"),
    ]


def _machine() -> list[Fact]:
    from harness.store.provenance import cores, cpu_name

    return [
        ("python", f"{platform.python_version()} ({platform.python_implementation()})"),
        ("platform", platform.platform()),
        ("processor", f"{cpu_name()}, {platform.machine()}"),
        ("instructions", _instructions()),
        ("cores", f"{cores()} of {os.cpu_count()}"),
        ("memory", _memory()),
    ]


def _instructions() -> str:
    if not _CPUINFO.is_file():
        return f"not told: {_CPUINFO} is not there"
    for line in _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            held = set(value.split())
            return " ".join(flag for flag in FLAGS if flag in held) or "none of those that matter"
    return f"not told by {_CPUINFO}"


def _memory() -> str:
    import psutil

    told = psutil.virtual_memory()
    text = f"{told.total / _GIB:.1f} GiB, {told.available / _GIB:.1f} GiB free"
    if _MEMORY_LIMIT.is_file() and (limit := _MEMORY_LIMIT.read_text().strip()).isdigit():
        text += f", limited to {int(limit) / _GIB:.1f} GiB"
    return text


def _gpus() -> list[Fact]:
    """What the driver tells, whichever build of torch is installed."""
    import pynvml as nvml

    try:
        nvml.nvmlInit()
    except nvml.NVMLError as cause:
        return [("none", f"NVML: {cause}")]
    try:
        cuda = nvml.nvmlSystemGetCudaDriverVersion_v2()
        facts = [
            ("driver", str(nvml.nvmlSystemGetDriverVersion())),
            ("cuda of the driver", f"{cuda // 1000}.{cuda % 1000 // 10}"),
        ]
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            size = nvml.nvmlDeviceGetMemoryInfo(handle).total / _GIB
            major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
            name = nvml.nvmlDeviceGetName(handle)
            facts.append((f"gpu {index}", f"{name}, {size:.1f} GiB, capability {major}.{minor}"))
        return facts
    finally:
        nvml.nvmlShutdown()


def _packages() -> list[Fact]:
    facts = [(name, package_version(name) or "is not installed") for name in PACKAGES]
    return [(n, f"{v}, {_torch_build()}" if n == "torch" else v) for n, v in facts]


def _torch_build() -> str:
    """What torch was built for, from the file that it is told in; torch is not imported."""
    try:
        path = Path(str(distribution("torch").locate_file("torch/version.py")))
        text = path.read_text(encoding="utf-8")
    except (PackageNotFoundError, OSError) as cause:
        return f"build not told ({type(cause).__name__})"
    found = dict(re.findall(r"^(cuda|hip|git_version)\b[^=]*= *'?([^'\n]*)'?", text, re.MULTILINE))
    return ", ".join(f"{n} {value}" for n, value in found.items() if (n, value) != ("hip", "None"))


def _scoring() -> list[Fact]:
    from harness.vbench import environment

    found = environment.find()
    if found is None:
        return [("none", environment.missing_line())]
    return [(name, version or "is not installed") for name, version in found.versions.items()]


def _plug_ins() -> list[Fact]:
    """Methods and metrics that other distributions bring."""
    found = [
        (f"{group} {point.name}", f"{point.value}, {point.dist.name} {point.dist.version}")
        for group in GROUPS
        for point in sorted(entry_points(group=group), key=lambda p: p.name)
        if point.dist is not None and point.dist.name != DISTRIBUTION
    ]
    return found or [("none", "")]


def _variables() -> list[Fact]:
    """What is set; of a token and of what may be one, only whether it is."""
    names = sorted(name for name in os.environ if name.startswith("HARNESS_"))
    facts = [
        (name, "is set" if _SECRET.search(name) else os.environ[name])
        for name in [*names, *VARIABLES]
        if name in os.environ
    ]
    return [*facts, *((name, "is set" if name in os.environ else "is not set") for name in TOKENS)]


def _store() -> list[Fact]:
    from harness.store.store import Store

    store = Store()
    held = Counter(kind for kind, _, _ in store.entries())
    there = next(p for p in (store.root, *store.root.parents) if p.exists())
    return [
        ("folder", str(store.root)),
        ("entries", ", ".join(f"{kind} {count}" for kind, count in held.items()) or "none"),
        ("free", f"{shutil.disk_usage(there).free / _GB:.1f} GB"),
    ]
