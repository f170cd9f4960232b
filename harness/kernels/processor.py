"""What a processor has for products of 8-bit integers. Importing this module needs no torch."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

INTEGER_UNITS = ("amx_int8", "avx512_vnni", "avx_vnni", "asimddp", "i8mm")
"""Flags, as Linux names them, of units that sum products of 8-bit integers in 32 bits."""

_LIMITS = (
    "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "HARNESS_X86_UNITS",
)  # fmt: skip
"""Environment variables by which the libraries are told to leave units alone."""


def integer_units() -> tuple[str, ...]:
    """Those of ``INTEGER_UNITS`` that this processor has; empty where it does not say."""
    return tuple(unit for unit in INTEGER_UNITS if has(unit))


def has(flag: str) -> bool:
    """Whether this processor has what Linux calls by a flag."""
    return flag in _flags()


@lru_cache(maxsize=1)
def _flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def limits() -> dict[str, str]:
    """Which of the variables are set that keep libraries from units."""
    return {name: os.environ[name] for name in _LIMITS if os.environ.get(name)}
