"""Codes of the kernel are those of the simulation, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from harness.quant.layers.activation import ActivationSpec, activation_codes, activation_grid
from harness.quant.layers.grid import SCALE_FLOOR, grouped
from tests.kernels.triton.parts import Tokens, quantize_tokens, seeded


def assert_same(found: Tokens, x: Tensor, spec: ActivationSpec) -> None:
    """Codes, steps and zero points are those that a processor finds in float32."""
    wide = x.float()
    shift = 0 if spec.symmetric else 1 << (spec.bits - 1)
    assert found.codes.dtype == torch.int8
    assert torch.equal(found.codes.cpu().float() + shift, activation_codes(wide, spec))
    grid = activation_grid(grouped(wide, spec.group), spec)
    assert torch.equal(found.scale.cpu(), grid.scale.reshape(found.scale.shape))
    assert (found.zero is None) == spec.symmetric
    if found.zero is not None and grid.zero is not None:
        zero = found.zero.cpu().float() + shift
        assert torch.equal(zero, grid.zero.reshape(found.zero.shape))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("width", "group"), [(96, 0), (101, 0), (96, 32), (300, 60)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_codes_are_those_of_the_simulation(
    device: str, dtype: torch.dtype, width: int, group: int, symmetric: bool
) -> None:
    x = (torch.randn(5, width, generator=seeded()) * 3 + 0.5).to(dtype)
    for bits in (2, 6, 8):
        for low, high in ((1.0, 1.0), (0.9, 0.9), (0.97, 0.8)):
            found = quantize_tokens(
                x.to(device), bits, group=group, symmetric=symmetric, clip_low=low, clip_high=high
            )
            spec = ActivationSpec(
                bits=bits, symmetric=symmetric, group=group, clip_low=low, clip_high=high
            )
            assert_same(found, x, spec)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_static_range_gives_one_step(device: str, symmetric: bool) -> None:
    x = torch.randn(3, 50, generator=seeded(1)) * 2
    for bits in (4, 8):
        found = quantize_tokens(x.to(device), bits, symmetric=symmetric, static=(-1.3, 2.6))
        spec = ActivationSpec(bits=bits, symmetric=symmetric, static_low=-1.3, static_high=2.6)
        assert found.scale.ndim == 0
        assert_same(found, x, spec)


@pytest.mark.parametrize("symmetric", [True, False])
def test_zeros_an_outlier_and_one_sided_tokens(device: str, symmetric: bool) -> None:
    x = torch.randn(7, 40, generator=seeded(2))
    x[0] = 0
    x[1, 7] = 1e6
    x[2, 7] = -1e6
    x[3] = x[3].abs() + 1  # asymmetric grids hold 0 all the same
    x[4] = -x[4].abs() - 1
    x[5] = 3e38
    x[6] *= 1e-30
    for low, high in ((1.0, 1.0), (1.0, 0.5)):
        spec = ActivationSpec(bits=8, symmetric=symmetric, clip_low=low, clip_high=high)
        found = quantize_tokens(x.to(device), 8, symmetric=symmetric, clip_low=low, clip_high=high)
        assert_same(found, x, spec)
    assert float(found.scale[0].cpu()) == pytest.approx(SCALE_FLOOR)


def test_halves_go_to_even_codes(device: str) -> None:
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5]])
    codes = quantize_tokens(x.to(device), 8).codes
    assert codes.tolist() == [[127, 0, 2, 2, 0, -2, -2, 126]]


def test_rows_of_a_wider_tensor_and_no_tokens_at_all(device: str) -> None:
    wide = torch.randn(4, 80, generator=seeded(3))
    spec = ActivationSpec(bits=8)
    assert_same(quantize_tokens(wide.to(device)[:, 16:64], 8), wide[:, 16:64], spec)
    assert quantize_tokens(wide.to(device)[:0], 8).codes.shape == (0, 80)


def test_what_a_kernel_cannot_round_is_refused(device: str) -> None:
    x = torch.zeros(2, 48, device=device)
    wide = torch.zeros(1, 32769, device=device)
    for tensor, bits, options, words in (
        (x, 9, {}, "2 to 8"),
        (x.double(), 8, {}, "float64"),
        (x.t(), 8, {}, "contiguous"),
        (x[0], 8, {}, "shape"),
        (x, 8, {"group": 32}, "multiple of group size"),
        (x, 8, {"group": 16, "static": (0.0, 1.0)}, "not grouped"),
        (wide, 8, {}, "32768"),
    ):
        with pytest.raises(ValueError, match=words):
            quantize_tokens(tensor, bits, **options)
