"""Loading one component of a pipeline through its own class, and saying what went wrong."""

from __future__ import annotations

import importlib
import logging
import re
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.models.default_dtype import default_dtype
from harness.models.files import choose_weights, weight_files
from harness.models.loaded import check_finite, check_loading

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import torch

_AGAIN = "download the component again, or check what its folder holds"
_UPGRADE = "upgrade diffusers and transformers, or choose a model in the format of diffusers"
_REPORTS = (
    "diffusers.models.modeling_utils", "transformers.modeling_utils",
    "transformers.distributed.tensor_parallel",
)  # fmt: skip
"""Loggers that report on weights; what matters of it is refused in words of our own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Component:
    """One entry of ``model_index.json``.

    Attributes:
        folder: Of the pipeline.
        name: Of the component, and of its folder.
        library: Where its class is from.
        class_name: Of its class.
    """

    folder: Path
    name: str
    library: str
    class_name: str

    @property
    def path(self) -> Path:
        """Its folder."""
        return self.folder / self.name

    def find_class(self) -> Any:
        """Look up its class.

        Raises:
            HarnessError: No installed library has it.
        """
        found = None
        if self.library in ("diffusers", "transformers"):
            found = getattr(importlib.import_module(self.library), self.class_name, None)
        else:  # a network that diffusers keeps beside the pipeline that uses it
            pipelines = importlib.import_module("diffusers.pipelines")
            found = getattr(getattr(pipelines, self.library, None), self.class_name, None)
        if found is None:
            raise HarnessError(
                f"component '{self.name}' is a '{self.class_name}' of '{self.library}', which is "
                "not installed",
                _UPGRADE,
            )
        return found


def load_component(component: Component, *, device: str, dtype: str) -> Any:
    """Load a component; a network comes checked, in evaluation mode and on its device.

    Args:
        component: What to load.
        device: Where a network goes.
        dtype: What a network is loaded in.

    Raises:
        HarnessError: It cannot be loaded, or its tensors are not those that its class has.
    """
    import torch

    with explained(component), default_dtype():
        cls = component.find_class()
        if not issubclass(cls, torch.nn.Module):
            _need_protobuf(component.path)
            return cls.from_pretrained(str(component.path), local_files_only=True)
        module, info = _read(cls, component, getattr(torch, dtype))
        check_loading(component.name, module, info)
        module.to(device)
    module.eval().requires_grad_(False)
    check_finite(component.name, module)
    return module


def _read(cls: Any, component: Component, dtype: torch.dtype) -> tuple[torch.nn.Module, Any]:
    name = str(dtype).removeprefix("torch.")
    files = weight_files(component.folder, component.name, component.library, name)
    names = [path.name for path in component.path.iterdir()]
    chosen = choose_weights(names, component.name, component.library, name)
    options: dict[str, Any] = {"variant": chosen.variant} if chosen.variant else {}
    if component.library == "transformers":
        options["ignore_mismatched_sizes"] = True  # reported, so that the tensors can be named
    try:
        return cls.from_pretrained(
            str(component.path),
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            local_files_only=True,
            **options,
        )
    except Exception:
        _refuse_damaged(component, files)
        raise


def _refuse_damaged(component: Component, files: tuple[Path, ...]) -> None:
    from safetensors import SafetensorError, safe_open

    for path in files:
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError, MemoryError) as cause:
            raise HarnessError(
                f"component '{component.name}' has a damaged file of weights, '{path.name}': "
                f"{first_line(cause)}",
                "download the file again; a pointer of git-lfs is fetched by `git lfs pull`",
            ) from cause


def _need_protobuf(folder: Path) -> None:
    only_pieces = (folder / "spiece.model").is_file() and not (folder / "tokenizer.json").is_file()
    if only_pieces and find_spec("google.protobuf") is None:
        raise HarnessError(
            f"the tokenizer in '{folder}' is a 'spiece.model', which needs the package protobuf",
            "pip install protobuf",
        )


@contextmanager
def explained(component: Component) -> Iterator[None]:
    """Turn what libraries raise about a component's files into two lines that name it."""
    try:
        with quiet(_REPORTS, logging.CRITICAL):
            yield
    except HarnessError:
        raise
    except Exception as cause:
        if _device_is_full(cause):
            raise
        raise _refusal(component, cause) from cause


def _refusal(component: Component, cause: Exception) -> HarnessError:
    what = f"component '{component.name}' ({component.class_name} in '{component.path}')"
    if isinstance(cause, MemoryError):
        return HarnessError(
            f"there is not enough memory to load {what}",
            "free memory, or check that its files are whole",
        )
    if isinstance(cause, ImportError):
        return HarnessError(
            f"{what} needs a package that is not installed: {first_line(cause)}",
            "install the package that is named",
        )
    shape = re.search(r"because (\S+) expected shape (.+?), but got (.+?)\. ", str(cause))
    if shape is not None:  # as diffusers says it
        wanted, found = (re.sub(r"torch\.Size|[\[\]]", "", s) for s in shape.groups()[1:])
        return HarnessError(
            f"component '{component.name}' has another shape in {shape[1]} is {found} and should "
            f"be {wanted}: its files are not those of a {component.class_name} with this "
            "config.json",
            "download the component again, weights and config of the same revision",
        )
    return HarnessError(f"{what} cannot be loaded: {first_line(cause)}", _AGAIN)


def _device_is_full(cause: Exception) -> bool:
    """Whether it is the memory of the device; what that means for the row is known elsewhere."""
    import torch

    return isinstance(cause, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(cause)


def first_line(cause: BaseException) -> str:
    """What an exception says, in one line."""
    return (str(cause).strip() or type(cause).__name__).splitlines()[0]


@contextmanager
def quiet(names: Sequence[str], level: int) -> Iterator[None]:
    """Leave out what loggers say below a level.

    Args:
        names: Of the loggers.
        level: Lowest level that is still said.
    """
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, before in zip(loggers, levels, strict=True):
            logger.setLevel(before)
