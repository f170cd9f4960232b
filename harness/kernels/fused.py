"""Rounding and epilogue in one pass each, where this machine has a compiler.

What is computed is the same to the bit, with fewer passes over memory: torch's Inductor joins the
operators that ``codes`` and ``product`` call one by one. Small inputs are not worth a compilation.
"""

from __future__ import annotations

import logging
import os
import warnings
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

WORTH = 1 << 20
"""Values of an input from which on its rounding is compiled: 512 tokens of a width of 2048."""

SETTING = "HARNESS_FUSE"
"""Environment variable; ``0`` computes everything operator by operator."""


@lru_cache(maxsize=1)
def missing() -> str | None:
    """Why nothing can be compiled here; None where it can. A trial takes seconds, once."""
    if os.environ.get(SETTING, "").strip() == "0":
        return f"{SETTING} is 0"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tried = torch.compile(torch.neg, dynamic=True)(torch.ones(3))
    except Exception as cause:  # whatever a compiler or its absence makes of it
        logging.getLogger(__name__).debug("no compilation", exc_info=True)
        return f"nothing can be compiled here: {type(cause).__name__}"
    return None if torch.equal(tried, -torch.ones(3)) else "the compiler computes something else"


@lru_cache(maxsize=16)
def fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function compiled for all numbers of tokens.

    Torch compiles it anew for another dtype, and computes it operator by operator where it was
    compiled too often: the result is the same.
    """
    found: Callable[..., Any] = torch.compile(function, dynamic=True)
    return found


def is_worth_it(x: Tensor) -> bool:
    """Whether an input is large, on a processor, and something can be compiled."""
    return x.device.type == "cpu" and x.numel() >= WORTH and missing() is None
