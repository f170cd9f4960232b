"""Transforms undo themselves on the weight side; Hadamard matrices exist for real widths."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.quant.layers import hadamard
from harness.quant.layers.transform import ChannelScale, Hadamard, Kronecker, build, kronecker_sizes

REAL_WIDTHS = (1152, 1536, 1920, 3072, 4608, 5120, 7680, 8960, 12288, 13824, 14336, 15360)


def make(kind: str, width: int, generator: torch.Generator) -> torch.nn.Module:
    """One transform of each kind."""
    if kind == "scale":
        return ChannelScale(torch.rand(width, generator=generator) + 0.5)
    if kind == "hadamard":
        return Hadamard.random(width, generator)
    a, b = kronecker_sizes(width)
    return Kronecker(
        torch.eye(a) + 0.2 * torch.randn(a, a, generator=generator),
        torch.eye(b) + 0.2 * torch.randn(b, b, generator=generator),
    )


@settings(deadline=None, max_examples=30)
@given(
    kind=st.sampled_from(["scale", "hadamard", "kronecker"]),
    width=st.sampled_from([2, 6, 12, 16, 24, 36, 60, 72]),
    seed=st.integers(0, 1000),
)
def test_a_transform_leaves_the_layer_as_it_was(kind: str, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    transform = make(kind, width, generator).double()
    x = torch.randn(5, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(3, width, generator=generator, dtype=torch.float64)
    again = build(kind, transform.tensors()).double()
    for version in (transform, again):
        y = version(x) @ version.weight(weight).T
        torch.testing.assert_close(y, x @ weight.T, rtol=1e-6, atol=1e-8)


def test_a_kronecker_transform_is_the_product_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    transform = make("kronecker", 12, generator)
    x = torch.randn(4, 12, generator=generator)
    full = torch.kron(transform.outer, transform.inner)
    torch.testing.assert_close(transform(x), x @ full)


@pytest.mark.parametrize("width", REAL_WIDTHS)
def test_widths_of_real_models_have_one_full_hadamard_matrix(width: int) -> None:
    shape = hadamard.hadamard_shape(width)
    assert shape.blocks == 1, shape
    assert shape.outer * shape.inner == width
    for factor in hadamard.factors(width, torch.float64):
        size = factor.shape[0]
        torch.testing.assert_close(factor @ factor.T, torch.eye(size, dtype=torch.float64))
        assert torch.allclose(factor.abs(), torch.full_like(factor, size**-0.5))


def test_other_widths_are_block_diagonal_and_say_so() -> None:
    shape = hadamard.hadamard_shape(2 * 7 * 11)
    assert shape.blocks == 77
    assert shape.label == "hadamard-77x2"
    outer, inner = hadamard.factors(154)
    assert torch.equal(outer, torch.eye(77))
    assert inner.shape == (2, 2)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown transform kind"):
        build("fourier", {})
