"""The kernels, or a reason to skip, and what several of their tests build."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed; CUDA builds of torch bring it")

from harness.kernels.triton.launch import INTERPRETED
from harness.kernels.triton.linear import int8_linear, int8_matmul, most_features
from harness.kernels.triton.rotate import rotate_quantize, why_not
from harness.kernels.triton.tokens import Tokens, quantize_tokens
from harness.kernels.triton.weight import (
    Weight,
    lane_sums,
    prepare_weight,
    to_lanes,
)

__all__ = [
    "INTERPRETED",
    "Tokens",
    "Weight",
    "int8_linear",
    "int8_matmul",
    "lane_sums",
    "most_features",
    "prepare_weight",
    "quantize_tokens",
    "random_lanes",
    "rotate_quantize",
    "seeded",
    "to_lanes",
    "why_not",
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_lanes(rows: int, width: int, bits: int, generator: torch.Generator) -> Tensor:
    half = 1 << (bits - 1)
    return torch.randint(-half, half, (rows, width), generator=generator).to(torch.int8)
