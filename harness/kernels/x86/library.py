"""The C of this folder, compiled once for a machine and loaded. Importing this needs no torch."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import platformdirs

from harness.kernels.processor import has

SETTING = "HARNESS_X86_UNITS"
"""Environment variable: ``avx512_vnni`` leaves tile units alone, ``none`` the whole kernel."""

_FOLDER = Path(__file__).parent
_SOURCES = ("rows.c", "product.c")
_NEEDED = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni")
_TILES = ("amx_tile", "amx_int8")
_FLAGS = (
    "-O3", "-ffp-contract=off", "-shared", "-fPIC", "-mavx512f", "-mavx512bw", "-mavx512vl",
    "-mavx512dq", "-mavx512vnni", "-mfma", "-mf16c",
)  # fmt: skip
_TILE_FLAGS = ("-mamx-tile", "-mamx-int8")
_COMPILERS = ("cc", "gcc", "clang")
_SECONDS = 120

_Long, _Int, _Float, _Pointer = ctypes.c_long, ctypes.c_int32, ctypes.c_float, ctypes.c_void_p


class Step(ctypes.Structure):
    """``Step`` of rows.c: a link of a chain of transforms."""

    _fields_: ClassVar = [
        ("kind", _Int), ("values", _Pointer), ("outer", _Pointer), ("inner", _Pointer),
        ("a", _Long), ("b", _Long),
    ]  # fmt: skip


class Rows(ctypes.Structure):
    """``Rows`` of rows.c: an input, how it is rounded, where its lanes go."""

    _fields_: ClassVar = [
        ("x", _Pointer), ("exact", _Pointer), ("lanes", _Pointer), ("steps", _Pointer),
        ("zeros", _Pointer), ("sums", _Pointer), ("chain", _Pointer),
        ("links", _Long), ("tokens", _Long), ("width", _Long), ("group", _Long),
        ("segment", _Long),
        ("bottom", _Float), ("top", _Float), ("low", _Float), ("high", _Float),
        ("step", _Float), ("zero", _Float),
        ("fixed", _Int), ("symmetric", _Int), ("dtype", _Int), ("centred", _Int),
        ("offset", _Int),
    ]  # fmt: skip


class Product(ctypes.Structure):
    """``Product`` of product.c: lanes, weight, steps, and where the output goes."""

    _fields_: ClassVar = [
        ("lanes", _Pointer), ("steps", _Pointer), ("zeros", _Pointer), ("sums", _Pointer),
        ("weight", _Pointer), ("shifts", _Pointer), ("weight_steps", _Pointer),
        ("weight_sums", _Pointer), ("weight_zeros", _Pointer), ("bias", _Pointer),
        ("out", _Pointer),
        ("tokens", _Long), ("outputs", _Long), ("columns", _Long), ("segments", _Long),
        ("tiles", _Long), ("token_stride", _Long), ("segment_stride", _Long),
        ("zero", _Int), ("dtype", _Int), ("amx", _Int),
    ]  # fmt: skip


@lru_cache(maxsize=1)
def missing() -> str | None:
    """Why it cannot be compiled or loaded here; None where it is at hand."""
    if platform.machine() not in ("x86_64", "AMD64") or os.name != "posix":
        return "it is for x86 processors under Linux"
    if os.environ.get(SETTING, "").strip() == "none":
        return f"{SETTING} is none"
    lacking = [flag for flag in _NEEDED if not has(flag)]
    if lacking:
        return f"the processor has no {', '.join(lacking)}"
    if _compiler() is None:
        return f"there is no C compiler ({', '.join(_COMPILERS)})"
    try:
        library()
    except (OSError, subprocess.SubprocessError) as cause:
        return f"it cannot be compiled here: {_told(cause)}"
    return None


@lru_cache(maxsize=1)
def tile_units() -> bool:
    """Whether products run on tile units (AMX), which the system must allow; else on vectors."""
    if os.environ.get(SETTING, "").strip() == "avx512_vnni":
        return False
    return all(map(has, _TILES)) and library().allow_amx() == 0


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """The compiled functions.

    Raises:
        OSError: It cannot be written or loaded.
        subprocess.SubprocessError: The compiler fails.
    """
    found = ctypes.CDLL(str(_compiled()))
    found.round_rows.argtypes = [ctypes.POINTER(Rows), _Long, _Long, _Pointer]
    found.round_rows.restype = None
    found.product.argtypes = [ctypes.POINTER(Product), _Long, _Long, _Pointer]
    found.product.restype = None
    found.product_scratch.argtypes = [ctypes.POINTER(Product), _Long]
    found.product_scratch.restype = _Long
    found.allow_amx.argtypes = []
    found.allow_amx.restype = ctypes.c_int
    return found


def _compiled() -> Path:
    """The library of these sources, this compiler and this processor, made unless it lies there."""
    compiler = _compiler()
    if compiler is None:
        raise OSError("no C compiler")
    tiles = _TILE_FLAGS if all(map(has, _TILES)) else ()
    said = hashlib.sha256(f"{_run(compiler, '--version')}{tiles}{digest()}".encode())
    folder = Path(platformdirs.user_cache_dir("vdit-quant-harness")) / "kernels"
    path = folder / f"x86-{said.hexdigest()[:16]}.so"
    if path.exists():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=folder))
    except OSError:  # a home that cannot be written to: for this process alone
        folder = Path(tempfile.mkdtemp(prefix="harness-x86-"))
        work, path = folder, folder / path.name
    made = work / "made.so"
    told = [*_FLAGS, "-o", str(made), *(str(_FOLDER / name) for name in _SOURCES)]
    try:
        try:
            _run(compiler, *tiles, *told)
        except subprocess.CalledProcessError:
            if not tiles:
                raise
            _run(compiler, *told)  # one that does not know tile units yet
        made.replace(path)
    finally:
        if work != folder:
            shutil.rmtree(work, ignore_errors=True)
    return path


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_SECONDS)
    return done.stdout


def _compiler() -> str | None:
    named = os.environ.get("CC", "").strip()
    return next((p for p in map(shutil.which, (named, *_COMPILERS)) if p), None)


def _told(cause: Exception) -> str:
    said = getattr(cause, "stderr", None) or str(cause)
    return next(iter(said.strip().splitlines()), type(cause).__name__)


@lru_cache(maxsize=1)
def digest() -> str:
    """Digest of the sources, for keys of what they compute."""
    said = hashlib.sha256()
    for name in ("lanes.h", *_SOURCES):
        said.update((_FOLDER / name).read_bytes())
    return said.hexdigest()[:16]


def units() -> str:
    """Which units multiply here: ``amx``, ``vnni``, or nothing where it does not run."""
    if missing() is not None:
        return ""
    return "amx" if tile_units() else "vnni"
