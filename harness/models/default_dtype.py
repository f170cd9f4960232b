"""The default dtype of torch, which libraries change while they build a network."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch


@contextmanager
def default_dtype(dtype: torch.dtype | None = None) -> Iterator[None]:
    """Leave the default dtype as it was found, whatever happens inside.

    A ``from_pretrained`` that fails may leave the dtype of the model it was building behind, and
    everything the process computes afterwards would be of that dtype.

    Args:
        dtype: The default inside; None keeps it.
    """
    import torch

    before = torch.get_default_dtype()
    try:
        if dtype is not None:
            torch.set_default_dtype(dtype)
        yield
    finally:
        torch.set_default_dtype(before)
