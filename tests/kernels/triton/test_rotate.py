"""The fused rotation finds the codes of the transform, up to the order of its sums."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from harness.quant.layers.transform import Hadamard
from tests.kernels.triton.parts import Tokens, quantize_tokens, rotate_quantize, seeded, why_not

DIFFERENT = 1e-3
"""Share of codes that may be the neighbour of the unfused one: float sums have another order."""

# one factor, two factors, block-diagonal, a Paley order with one factor and with two
WIDTHS = (64, 1024, 208, 192, 3072)


def assert_near(found: Tokens, wanted: Tokens) -> None:
    off = (found.codes.cpu().int() - wanted.codes.int()).abs()
    assert int(off.max()) <= 1
    assert float((off > 0).float().mean()) <= DIFFERENT
    torch.testing.assert_close(found.scale.cpu(), wanted.scale, rtol=1e-5, atol=0)


def unfused(exact: Tensor, **options) -> Tokens:
    """Codes of the rotated tokens, by the kernel that is held against the simulation."""
    if exact.device.type == "cpu":
        return quantize_tokens(exact, **options)
    found = quantize_tokens(exact, **options)
    return Tokens(found.codes.cpu(), found.scale.cpu(), None)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_codes_are_those_of_the_transform_or_their_neighbours(
    device: str, width: int, symmetric: bool
) -> None:
    x = torch.randn(5, width, generator=seeded(width)) * 3 + 0.5
    rotation = Hadamard.random(width, seeded(1))
    for bits in (4, 8):
        found = rotate_quantize(
            x.to(device), rotation.signs.to(device), bits, symmetric=symmetric, keep=True
        )
        exact = rotation(x)
        assert float((found.exact.cpu() - exact).abs().max() / exact.abs().max()) < 2e-6
        assert_near(found.tokens, unfused(exact.to(device), bits=bits, symmetric=symmetric))


def test_groups_a_static_range_and_clips(device: str) -> None:
    x = torch.randn(3, 192, generator=seeded(5))
    rotation = Hadamard.random(192, seeded(6))
    exact = rotation(x).to(device)
    for options in (
        {"bits": 6, "group": 32},
        {"bits": 8, "static": (-2.0, 2.5), "symmetric": False},
        {"bits": 8, "clip_low": 1.0, "clip_high": 0.7},
        {"bits": 8, "clip_low": 0.9, "clip_high": 0.7, "group": 64, "symmetric": False},
    ):
        found = rotate_quantize(x.to(device), rotation.signs.to(device), **options)
        assert found.exact is None
        assert_near(found.tokens, unfused(exact, **options))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rotated_values_are_rounded_to_the_dtype_of_the_tokens_first(
    device: str, dtype: torch.dtype
) -> None:
    x = torch.randn(6, 192, generator=seeded(7)).to(dtype)
    rotation = Hadamard.random(192, seeded(8))
    found = rotate_quantize(x.to(device), rotation.signs.to(device), 8, keep=True)
    exact = rotation(x)
    assert found.exact.dtype == dtype
    # one step of the dtype apart, and seldom
    assert float((found.exact.cpu() != exact).float().mean()) <= DIFFERENT
    assert_near(found.tokens, unfused(exact.to(device), bits=8))


def test_tokens_of_zeros_and_one_outlier(device: str) -> None:
    x = torch.zeros(2, 64)
    x[1, 5] = 1e4
    signs = Hadamard.random(64, seeded(9)).signs.to(device)
    codes = rotate_quantize(x.to(device), signs, 8).tokens.codes.cpu()
    assert not codes[0].any()
    assert set(codes[1].tolist()) == {-127, 127}  # spread evenly, by sign alone


@pytest.mark.parametrize(
    ("width", "group", "words"),
    [
        (1000, 0, "power-of-two part"),
        (8960, 0, "outer matrix of 140"),
        (32768, 0, "places"),
        (192, 96, "no power of two"),
    ],
)
def test_widths_that_no_kernel_rotates_are_named(width: int, group: int, words: str) -> None:
    assert words in why_not(width, group)


def test_widths_of_known_models_are_rotated_and_others_refused(device: str) -> None:
    for width in (1152, 1536, 1920, 3072, 4608, 5120, 7680, 12288, 13824, 14336, 15360):
        assert why_not(width, 128) is None
    signs = torch.ones(1000, dtype=torch.int8, device=device)
    with pytest.raises(ValueError, match="power-of-two part"):
        rotate_quantize(torch.zeros(1, 1000, device=device), signs, 8)
    with pytest.raises(ValueError, match="signs"):
        rotate_quantize(torch.zeros(1, 64, device=device), signs, 8)
