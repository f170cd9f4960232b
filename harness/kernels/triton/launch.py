"""Where a Triton kernel can run, and what its launches have in common.

Triton decides when a kernel is decorated whether it is compiled or interpreted: with
``TRITON_INTERPRET=1`` in the environment before triton is imported, all kernels of a process are
interpreted, by NumPy, on tensors that may lie on the CPU.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from torch import Tensor

INTERPRETED: bool = bool(triton.knobs.runtime.interpret)
"""Whether the kernels of this process are interpreted."""

IN_INTERPRETER = tl.constexpr(INTERPRETED)
"""The same for the code of kernels. Triton 3.6's interpreter holds bfloat16 as its bits: it cannot
multiply matrices of it, and cuts where it has to round. Kernels go round both with it."""


def require(*tensors: Tensor) -> None:
    """Refuse tensors that no kernel of this process can read.

    Raises:
        ValueError: They lie on several devices, or not on a CUDA device while kernels are compiled.
    """
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        raise ValueError(f"tensors lie on several devices: {', '.join(sorted(map(str, devices)))}")
    if not INTERPRETED and (device := devices.pop()).type != "cuda":
        raise ValueError(
            f"a Triton kernel needs a CUDA device, not {device}; "
            "with TRITON_INTERPRET=1, set before triton is imported, it is interpreted on the CPU"
        )


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Make the device of a tensor the current one: Triton launches there and nowhere else."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def capability(tensor: Tensor) -> tuple[int, int]:
    """Compute capability of the device of a tensor; 8.0, the lowest supported, off CUDA."""
    return torch.cuda.get_device_capability(tensor.device) if tensor.is_cuda else (8, 0)


@triton.jit
def to_bfloat16(value):  # type: ignore[no-untyped-def]
    """Round float32 to bfloat16, half to even; not for NaN in the interpreter."""
    if IN_INTERPRETER:
        bits = value.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        value = bits.to(tl.float32, bitcast=True)
    return value.to(tl.bfloat16)
