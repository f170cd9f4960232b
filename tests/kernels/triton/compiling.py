"""Compile the kernels for a compute capability, without a GPU, through their own launches.

    python -m tests.kernels.triton.compiling 90

Tensors lie on the CPU, a stand-in answers what Triton asks a driver, and a launch ends before the
kernel would start. Prints a JSON object a kernel: case, shared bytes, matrix instructions, kinds of
float division, whether products and sums are or can be contracted.
"""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING, Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from harness.kernels.triton import launch, linear, rotate, tokens

if TYPE_CHECKING:
    from collections.abc import Callable

COMPILED: list[Any] = []
_run = JITFunction.run


class Driver:
    """A device that compiles and runs nothing."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return device


def only_compile(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
    COMPILED.append(_run(kernel, *args, grid=grid, warmup=True, **options))


def product(
    count: int, width: int, rows: int, *, bits: int = 8, group: int = 0, points: bool = False,
    rank: int = 0, out: torch.dtype = torch.bfloat16,
) -> None:  # fmt: skip
    """One linear; with ``points`` both sides have zero points."""
    groups = width // group if group else 1
    codes = torch.zeros(count, width, dtype=torch.int8)
    weight = torch.zeros(rows, width, dtype=torch.int8)
    if bits == 4:
        weight = torch.zeros(rows, width // 2, dtype=torch.uint8)
    x_point = torch.zeros(count, 1, dtype=torch.int8) if points else None
    w_point = torch.zeros(rows, groups, dtype=torch.int8) if points else None
    branch = None
    if rank:
        inner = torch.zeros(count, rank, dtype=out)
        branch = inner, torch.zeros(rows, rank, dtype=out)
    linear.int8_linear(
        codes, torch.ones(count, 1), x_point, weight, torch.ones(rows, groups), w_point,
        bits=bits, group=group, bias=torch.zeros(rows, dtype=out) if points else None,
        low_rank=branch, out_dtype=out,
    )  # fmt: skip


def rounded(width: int, dtype: torch.dtype = torch.bfloat16, **options: Any) -> None:
    tokens.quantize_tokens(torch.zeros(2, width, dtype=dtype), 8, **options)


def rotated(width: int, dtype: torch.dtype = torch.bfloat16, **options: Any) -> None:
    signs = torch.ones(width, dtype=torch.int8)
    rotate.rotate_quantize(torch.zeros(2, width, dtype=dtype), signs, 8, **options)


def sums(count: int, width: int, rows: int) -> None:
    codes = torch.zeros(count, width, dtype=torch.int8)
    linear.int8_matmul(codes, torch.zeros(rows, width, dtype=torch.int8), bits=8)


CASES: dict[str, Callable[[], None]] = {
    "sums, one token": lambda: sums(1, 96, 1),
    "sums, odd": lambda: sums(67, 201, 129),
    "w8, few tokens": lambda: product(48, 256, 128),
    "w8, many tokens, half": lambda: product(200, 256, 128, out=torch.float16),
    "w8, by channel": lambda: product(512, 256, 512),
    "w4, by channel": lambda: product(512, 256, 512, bits=4),
    "w4, by channel, points, branch": lambda: product(512, 256, 512, bits=4, points=True, rank=32),
    "w4, group 128": lambda: product(512, 256, 512, bits=4, group=128),
    "w4, group 64, points, branch": lambda: product(
        512, 256, 512, bits=4, group=64, points=True, rank=33
    ),
    "w8, group 96, points": lambda: product(512, 192, 512, group=96, points=True),
    "w8, group 32, one token": lambda: product(1, 64, 1, group=32, points=True),
    "w8, float32, branch": lambda: product(1, 64, 64, rank=8, out=torch.float32),
    "tokens": lambda: rounded(3072),
    "tokens, asymmetric groups": lambda: rounded(1920, group=128, symmetric=False),
    "tokens, static": lambda: rounded(96, torch.float32, static=(-1.0, 2.0), symmetric=False),
    "rotation, two factors": lambda: rotated(3072, keep=True),
    "rotation, one factor": lambda: rotated(1920, group=128, symmetric=False),
    "rotation, float32": lambda: rotated(4096, torch.float32, clip_low=0.9),
    "rotation, widest": lambda: rotated(15360),
    "rotation, blocks": lambda: rotated(208, torch.float16),
}


def main() -> None:
    """Compile all cases."""
    capability = int(sys.argv[1])
    driver.set_active(Driver(capability))
    JITFunction.run = only_compile
    launch.INTERPRETED = True  # so that tensors on the CPU are taken
    for module in (linear, rotate):
        module.capability = lambda _: divmod(capability, 10)
    for name, call in CASES.items():
        COMPILED.clear()
        call()
        (kernel,) = COMPILED
        matrix = re.findall(r"(?:wgmma\.mma_async|mma)\.sync\.aligned\S+", kernel.asm["ptx"])
        about = {"case": name, "shared": kernel.metadata.shared, "matrix": sorted(set(matrix))}
        about["divisions"] = sorted(set(re.findall(r"div\.\w+\.f32", kernel.asm["ptx"])))
        about["contracted"] = bool(re.search(r"(?:fma\.rn|mul|add|sub)\.f32", kernel.asm["ptx"]))
        print(json.dumps(about), flush=True)


if __name__ == "__main__":
    main()
