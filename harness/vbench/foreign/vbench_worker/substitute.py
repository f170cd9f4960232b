"""Call the official functions with a few of their modules' names meaning something else."""

from __future__ import annotations

import importlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def replaced(place: Any, **names: Any) -> Iterator[None]:
    """Let attributes of a module or an object mean something else for a while."""
    before = {name: getattr(place, name) for name in names}
    own = {name for name in names if name in vars(place)}
    try:
        for name, value in names.items():
            setattr(place, name, value)
        yield
    finally:
        for name, value in before.items():
            if name in own:
                setattr(place, name, value)
            else:
                delattr(place, name)


def silent(items: Any, **_: Any) -> Any:
    """Stands for ``tqdm``: a bar per clip would say nothing."""
    return items


def dimension_module(name: str) -> Any:
    """The official module of a dimension."""
    return importlib.import_module(f"vbench.{name}")


def paths(dimension: str) -> Any:
    """Where the official package looks for the files of a dimension.

    Raises:
        MissingFileError: If one is not there; the package tries to download it.
    """
    from vbench.utils import init_submodules

    return init_submodules([dimension], local=True)[dimension]
