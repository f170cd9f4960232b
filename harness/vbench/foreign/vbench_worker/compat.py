"""What vbench 0.1.5 needs to run beside libraries that are newer than it, each with its reason.

``prepare`` applies what must be in place before ``vbench`` is imported. Each measure does nothing
where it is not needed, and says so.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import sys
import types
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from vbench_worker.judges import MissingFileError
from vbench_worker.substitute import replaced

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

APPLIED, NOT_NEEDED = "applied", "not needed"

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_FETCHERS = {"wget", "curl", "git", "unzip"}
_LIBRARIES: list[Any] = []


def torchvision_schemas() -> str:
    """Define two operators that a CUDA-built torchvision lacks beside a CPU build of torch.

    Its compiled part links to CUDA libraries, fails to load without a word, and then the import of
    torchvision fails since it registers fakes for operators that nobody has defined. With their
    schemas defined it imports; the operators themselves are not needed by any dimension but GRiT's.
    """
    import torch

    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None or torch.version.cuda is not None:
        return NOT_NEEDED
    compiled = sorted(Path(found.origin).parent.glob("_C*.so"))
    if not compiled or _loads(compiled[0]) or hasattr(torch.ops.torchvision, "nms"):
        return NOT_NEEDED
    library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS:
        library.define(schema)
    _LIBRARIES.append(library)  # the definitions live as long as this object
    return APPLIED


def _loads(library: Path) -> bool:
    try:
        ctypes.CDLL(str(library))
    except OSError:
        return False
    return True


def packaging_in_pkg_resources() -> str:
    """Give openai-clip the ``pkg_resources.packaging`` that setuptools no longer has."""
    if importlib.util.find_spec("clip") is None:
        return NOT_NEEDED
    try:
        from pkg_resources import packaging
    except ImportError:
        import packaging.version

        stub = sys.modules.get("pkg_resources") or types.ModuleType("pkg_resources")
        stub.packaging = packaging  # type: ignore[attr-defined]
        sys.modules["pkg_resources"] = stub
        return APPLIED
    return NOT_NEEDED


def function_base_in_numpy() -> str:
    """Give UMT's data sets the ``numpy.lib.function_base`` that numpy 2 no longer has.

    They import ``disp`` from it and never call it.
    """
    if importlib.util.find_spec("numpy.lib.function_base") is not None:
        return NOT_NEEDED
    stub = types.ModuleType("numpy.lib.function_base")
    stub.disp = print  # type: ignore[attr-defined]
    sys.modules["numpy.lib.function_base"] = stub
    return APPLIED


def cache_dir_of_timm() -> str:
    """Drop the ``cache_dir`` that timm 1.0.13 and newer pass and UMT's network does not take."""
    import inspect

    from timm.models import create_model

    if "cache_dir" not in inspect.signature(create_model).parameters:
        return NOT_NEEDED
    from vbench.third_party.umt.models import modeling_finetune

    without_cache_dir_(modeling_finetune)
    return APPLIED


def without_cache_dir_(module: Any) -> None:
    """Let ``module.VisionTransformer`` ignore an argument ``cache_dir``."""
    network = module.VisionTransformer

    def made(*args: Any, cache_dir: Any = None, **options: Any) -> Any:
        return network(*args, **options)

    module.VisionTransformer = made


def no_gradients() -> str:
    """Compute without gradients: scene and background_consistency forget to say so themselves.

    The graph of one scene needs 20 GB where the values need 4.5 GB.
    """
    import torch

    torch.set_grad_enabled(False)
    return APPLIED


def steady_numbers() -> str:
    """Choose deterministic kernels on a GPU, so that two runs give the same numbers.

    TF32 stays as torch sets it, as in the official runs. On a CPU the kernels are deterministic,
    and to say so takes torch a second of imports.
    """
    import torch

    if not torch.cuda.is_available():
        return NOT_NEEDED
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    return APPLIED


def no_downloads() -> str:
    """Refuse every download: a missing file is an error that names it, never a silent fetch.

    The official package calls wget, git and unzip, urllib and torch.hub, and some of its callers
    ignore their failure. The interpreter itself announces such calls to audit hooks.
    """
    sys.addaudithook(refuse_download)
    return APPLIED


def refuse_download(event: str, args: tuple[Any, ...]) -> None:
    """An audit hook.

    Raises:
        MissingFileError: If the event is the start of a download.
    """
    wanted = None
    if event == "subprocess.Popen":
        wanted = _fetched([str(part) for part in args[1]])
    elif event == "urllib.Request":
        wanted = str(args[0])
    elif event == "socket.getaddrinfo":
        wanted = f"a file from {args[0]}"
    elif event == "socket.connect" and isinstance(args[1], tuple):
        wanted = f"a file from {args[1][0]}"
    if wanted is not None:
        raise MissingFileError(f"{wanted} is missing; nothing is downloaded while scoring")


def _fetched(command: list[str]) -> str | None:
    """What a command line would fetch; None where it fetches nothing."""
    if not command or Path(command[0]).name not in _FETCHERS:
        return None
    if "-P" in command:
        folder = Path(command[command.index("-P") + 1])
        names = [Path(urlparse(part).path).name for part in command if "://" in part]
        return ", ".join(str(folder / name) for name in names)
    return command[-1]


@contextmanager
def trusting_load(module: Any) -> Iterator[None]:
    """Let a module load a checkpoint that holds more than tensors.

    The official AMT checkpoint does; since torch 2.6 ``torch.load`` refuses it unless told
    otherwise, and the official repository, after 0.1.5, tells it so.
    """
    torch = module.torch

    class Torch:
        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

        def load(self, *args: Any, **options: Any) -> Any:
            return torch.load(*args, **{"weights_only": False} | options)

    with replaced(module, torch=Torch()):
        yield


@contextmanager
def private_imports(folder: Path) -> Iterator[None]:
    """Import from a folder for a while, and forget what was imported from it.

    AMT puts its folder on ``sys.path`` for good and imports ``networks`` and ``utils`` from there,
    DINO imports its own ``utils`` the same way: whichever came second would get the other's.
    """
    path, known = list(sys.path), set(sys.modules)
    sys.path.append(str(folder))
    try:
        yield
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - known:
            if name.split(".")[0] != "vbench" and _lies_in(sys.modules[name], folder.resolve()):
                del sys.modules[name]


def _lies_in(module: Any, folder: Path) -> bool:
    # A package without __init__.py has a path but no file.
    places = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
    return any(Path(p).resolve().is_relative_to(folder) for p in places if p)


BEFORE_IMPORT: tuple[Callable[[], str], ...] = (
    torchvision_schemas,
    packaging_in_pkg_resources,
    function_base_in_numpy,
    no_gradients,
    steady_numbers,
    no_downloads,
)
AFTER_IMPORT: tuple[Callable[[], str], ...] = (cache_dir_of_timm,)


def surroundings(weights: Path) -> None:
    """Set the variables and the working folder that the official package reads its paths from."""
    weights.mkdir(parents=True, exist_ok=True)
    os.environ["VBENCH_CACHE_DIR"] = str(weights)
    os.environ["TORCH_HOME"] = str(weights / "torch")
    os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
    # cuBLAS is deterministic only with a workspace of fixed size.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.chdir(weights)  # where Tag2Text finds the folder bert-base-uncased


def prepare(weights: Path) -> None:
    """Apply every measure that must come before ``vbench`` is imported."""
    surroundings(weights)
    for measure in BEFORE_IMPORT:
        measure()


DISTRIBUTIONS = {
    "vbench": ("vbench",),
    "torch": ("torch",),
    "torchvision": ("torchvision",),
    "transformers": ("transformers",),
    "timm": ("timm",),
    "numpy": ("numpy",),
    "opencv": ("opencv-python-headless", "opencv-python"),
    "decord": ("decord",),
    "pyiqa": ("pyiqa",),
    "openai-clip": ("openai-clip", "clip"),
    "detectron2": ("detectron2",),
}


def versions() -> dict[str, str]:
    """Versions of what the scores depend on; empty where it is not installed."""
    found = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions()}
    return {
        name: next((found[known] for known in candidates if known in found), "")
        for name, candidates in DISTRIBUTIONS.items()
    }
