"""The kernels compile for the devices that they are for, as they are launched there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# 99 KiB a program on 8.6 and 8.9, the least of capability 8; 227 KiB on 9.0 (CUDA C++ Programming
# Guide, technical specifications per compute capability)
SHARED = {80: 99 << 10, 90: 227 << 10}

WARPGROUPS = (
    "sums, odd", "w8, few tokens", "w8, many tokens, half", "w8, by channel", "w4, by channel",
    "w4, by channel, points, branch", "w4, group 128", "w4, group 64, points, branch",
    "w8, group 96, points",
)  # fmt: skip
"""Products of more than 16 tokens, which are multiplied by warpgroups on 9.0."""


@pytest.mark.slow
@pytest.mark.parametrize("capability", sorted(SHARED))
def test_kernels_compile_to_matrix_instructions_and_fit(capability: int, tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="triton is not installed; CUDA builds of torch bring it")
    root = Path(__file__).parents[3]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.triton.compiling", str(capability)],
        cwd=root, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {about["case"] for about in found} >= {*WARPGROUPS, "tokens", "rotation, blocks"}
    for about in found:
        assert about["shared"] <= SHARED[capability], about
        kinds = " ".join(about["matrix"])
        if about["case"].startswith(("w4", "w8", "sums")):
            assert "s32.s8.s8" in kinds, about
            wanted = capability == 90 and about["case"] in WARPGROUPS
            assert ("wgmma" in kinds) == wanted, about
        else:
            assert ("tf32" in kinds) == about["case"].startswith("rotation"), about
            # what decides about codes is divided and added as IEEE 754 says
            assert about["divisions"] == ["div.rn.f32"], about
            assert not about["contracted"], about
