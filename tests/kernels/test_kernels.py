"""A kernel computes what the simulation computes: the same codes, exact sums, the same layer."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
import torch

from harness.kernels.codes import input_codes
from harness.kernels.dispatch import inexact, usable
from harness.kernels.layer import KernelLinear, SharedInput
from harness.kernels.product import WIDEST, Product, integer_weight
from harness.kernels.registry import kernel_names, load_kernel
from harness.quant.layers.activation import (
    ActivationSpec,
    activation_codes,
    quantize_activation,
)
from harness.quant.layers.grid import Affine
from harness.quant.layers.linear import QuantLinear, WeightSpec, quantize_linear
from harness.quant.layers.low_rank import LowRank
from harness.quant.layers.transform import ChannelScale
from tests.kernels.exact import Exact, ExactProduct, by_kernel

if TYPE_CHECKING:
    from torch import Tensor

    from harness.kernels.contract import Kernel

CPU = torch.device("cpu")


def here() -> list[Any]:
    """Every kernel; those that this machine has not are skipped with their own reason.

    A processor without units for 8-bit integers adds products in 16 bits, which may overflow: the
    trial before a kernel is used finds that, so there is nothing to hold here.
    """
    found: list[Any] = [pytest.param(Exact(), id="exact")]
    for name in kernel_names():
        kernel = load_kernel(name)
        # cuBLAS' product runs on a processor too, slowly: its padding can be tested there
        why = (None if name == "int-mm" else kernel.missing(CPU)) or inexact(name, "cpu")
        marks = pytest.mark.skip(reason=f"{name}: {why}") if why else ()
        found.append(pytest.param(kernel, id=name, marks=marks))
    return found


def layer(
    tokens: int = 5, width: int = 48, outputs: int = 24, *, w: int = 4, a: int = 6,
    symmetric: bool = True, seed: int = 0, bias: bool = True, **activation: Any,
) -> tuple[QuantLinear, Tensor]:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    linear = torch.nn.Linear(width, outputs, bias=bias).requires_grad_(False)
    linear.weight.normal_(generator=generator)
    if bias:
        linear.bias.normal_(generator=generator)
    spec = ActivationSpec(bits=a, symmetric=symmetric, **activation)
    made = quantize_linear(linear, WeightSpec(bits=w, symmetric=symmetric), spec)
    x = torch.randn(tokens, width, generator=generator) + 0.5
    x[0] *= 100
    return made, x


STATIC = {"static_low": -2.0, "static_high": 3.0}


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("more", [{}, STATIC, {"clip_low": 0.9, "clip_high": 0.8}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_codes_are_those_of_the_simulation(
    bits: int, symmetric: bool, more: dict[str, float], dtype: torch.dtype
) -> None:
    spec = ActivationSpec(bits=bits, symmetric=symmetric, **more)
    # more values than are rounded at a time, one token of zeros and one outlier
    x = torch.randn(301, 1000, generator=torch.Generator().manual_seed(bits)).to(dtype)
    x[7], x[8, 3] = 0, 1000
    codes = input_codes(x, spec)
    shift = 128 if bits == 8 and not symmetric else 0
    assert torch.equal(codes.values.float() + shift, activation_codes(x.float(), spec))
    assert torch.equal(codes.values_of(dtype), quantize_activation(x, spec))
    assert codes.scale.shape == ((1, 1) if more == STATIC else (301, 1))


@pytest.mark.parametrize("kernel", here())
@pytest.mark.parametrize(
    ("tokens", "width", "outputs"), [(1, 64, 32), (16, 33, 7), (17, 100, 41), (70, 513, 130)]
)
def test_sums_of_products_are_exact(kernel: Kernel, tokens: int, width: int, outputs: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    values = torch.randint(-128, 128, (tokens, width), generator=generator)
    for bits in (4, 6, 8):
        half = 1 << (bits - 1)
        codes = torch.randint(-half, half, (outputs, width), generator=generator)
        made = QuantLinear(
            weight=WeightSpec(bits=bits), codes=codes, grid=Affine(torch.ones(outputs, 1), None),
            bias=None, transforms=(),
            activation=ActivationSpec(bits=8, static_low=-127.0, static_high=127.0),
        )  # fmt: skip
        out = torch.full((tokens, outputs), torch.nan)  # every value has to be written
        kernel.product(made)(kernel.reader([made])(values.float()).codes, out)
        assert torch.equal(out.long(), values @ codes.t())


@pytest.mark.parametrize("kernel", here())
@pytest.mark.parametrize(("w", "a"), [(4, 6), (4, 4), (8, 8), (3, 5)])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("more", [{}, STATIC])
def test_a_layer_is_that_of_the_simulation(
    kernel: Kernel, w: int, a: int, symmetric: bool, more: dict[str, float]
) -> None:
    for tokens, width, outputs in ((1, 48, 24), (37, 130, 70)):
        made, x = layer(tokens, width, outputs, w=w, a=a, symmetric=symmetric, **more)
        found = by_kernel(made, kernel)(x[None])
        expected = made.double()(x.double()[None])  # the simulation without its own rounding
        error = (found - expected).abs().amax() / expected.abs().amax()
        assert found.shape == (1, tokens, outputs)
        assert float(error) < 1e-5


@pytest.mark.parametrize("kernel", here())
@pytest.mark.parametrize("rounded", [True, False])
def test_a_low_rank_branch_stands_beside_the_product(kernel: Kernel, rounded: bool) -> None:
    made, x = layer(12, 48, 24)
    generator = torch.Generator().manual_seed(1)
    made.low_rank = LowRank(
        torch.randn(4, 48, generator=generator), torch.randn(24, 4, generator=generator),
        rounded=rounded, gain=torch.tensor([1.0, 2.0]), text_tokens=2,
    )  # fmt: skip
    made.transforms.append(ChannelScale(torch.rand(48, generator=generator) + 0.5))
    found = by_kernel(made, kernel)(x[None])
    torch.testing.assert_close(found, made(x[None]), rtol=1e-4, atol=1e-3)


def test_many_tokens_are_computed_block_by_block() -> None:
    made, x = layer(3000, 32, 600, symmetric=False)
    found = by_kernel(made, Exact())(x)
    torch.testing.assert_close(found, made(x), rtol=1e-4, atol=1e-3)


def test_the_output_has_the_dtype_of_the_input() -> None:
    made, x = layer()
    half = by_kernel(made, Exact())(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), made(x.bfloat16().float()), rtol=1e-2, atol=1e-2)


def test_readers_of_one_tensor_share_its_codes() -> None:
    (one, x), (two, _) = layer(seed=1), layer(seed=2)
    shared = SharedInput(Exact().reader([one, two]), 2)
    mine, other = (KernelLinear(made, Exact(), shared) for made in (one, two))
    mine(x)
    kept = shared._found
    assert kept is not None
    torch.testing.assert_close(other(x), two(x), rtol=1e-4, atol=1e-3)
    assert shared._found is None  # nobody reads it again
    mine(x)
    again = x.clone()
    again[0] = 0
    torch.testing.assert_close(other(again), two(again), rtol=1e-4, atol=1e-3)


def test_a_tensor_that_was_written_to_is_read_again() -> None:
    (one, x), (two, _) = layer(seed=1), layer(seed=2)
    shared = SharedInput(Exact().reader([one, two]), 2)
    mine, other = (KernelLinear(made, Exact(), shared) for made in (one, two))
    mine(x)
    x.mul_(3)
    torch.testing.assert_close(other(x), two(x), rtol=1e-4, atol=1e-3)


def test_an_unread_input_is_not_kept_alive() -> None:
    (one, x), (two, _) = layer(seed=1), layer(seed=2)
    shared = SharedInput(Exact().reader([one, two]), 2)
    mine = KernelLinear(one, Exact(), shared)
    mine(x.clone())  # gone at once: the next tensor may lie where it lay
    moved = x * 2
    torch.testing.assert_close(mine(moved), one(moved), rtol=1e-4, atol=1e-3)


def test_no_sum_of_the_widest_layer_leaves_32_bits() -> None:
    for a, b in itertools.product((-128, 127), repeat=2):
        assert abs(a * b) * WIDEST < 1 << 31
    assert 128 * 128 * (WIDEST + 1) >= 1 << 31


def test_a_weight_in_groups_has_no_step_for_each_channel() -> None:
    linear = torch.nn.Linear(32, 8).requires_grad_(False)
    made = quantize_linear(linear, WeightSpec(bits=4, group=16), ActivationSpec(bits=8))
    with pytest.raises(ValueError, match="each output channel"):
        integer_weight(made)


def test_a_kernel_that_loses_something_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Saturating(Exact):
        name = "saturating"

        def product(self, layer: QuantLinear) -> Product:
            class Short(ExactProduct):
                def scaled(self, values: Tensor) -> Tensor:
                    return super().scaled(values).clamp(-32768, 32767)

            return Short(layer)

    inexact.cache_clear()
    monkeypatch.setattr("harness.kernels.dispatch.load_kernel", lambda name: Saturating())
    monkeypatch.setattr("harness.kernels.dispatch.kernel_names", lambda: ("saturating",))
    found, why = usable("auto", CPU)
    inexact.cache_clear()
    assert not found
    assert why == "saturating: its sums of products are not exact"
