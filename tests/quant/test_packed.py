"""Layers that hold packed codes compute the same bits as ever, and take the bytes they say."""

from __future__ import annotations

import copy
import dataclasses
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.errors import UsageError
from harness.quant.layers import activation, expansion
from harness.quant.layers.activation import ActivationSpec, quantize_activation, round_activation
from harness.quant.layers.expansion import EXPANDED, ExpandedWeights
from harness.quant.layers.footprint import bytes_per_weight, call_bytes, resident_bytes
from harness.quant.layers.grid import decode, encode, expand, fake_quantize, weight_grid
from harness.quant.layers.linear import QuantLinear, WeightSpec, quantize_linear, stored_grid
from harness.quant.layers.low_rank import LowRank
from harness.quant.layers.switch import SwitchedLinear
from harness.quant.layers.transform import ChannelScale, Hadamard, Kronecker

if TYPE_CHECKING:
    from collections.abc import Iterator

WIDTH, OUT = 96, 40
WEIGHTS = {
    "symmetric": WeightSpec(bits=4),
    "asymmetric groups": WeightSpec(bits=4, symmetric=False, group=32),
    "three bits": WeightSpec(bits=3, group=16),
    "six bits": WeightSpec(bits=6, symmetric=False),
    "eight bits": WeightSpec(bits=8),
    "sixteen bits": WeightSpec(bits=16),
}
ACTIVATIONS = {
    "token": ActivationSpec(bits=6),
    "asymmetric": ActivationSpec(bits=4, symmetric=False, clip_low=0.9, clip_high=0.8),
    "clipped": ActivationSpec(bits=4, clip_low=0.7, clip_high=0.7),
    "groups": ActivationSpec(bits=8, group=32),
    "static": ActivationSpec(bits=8, symmetric=False, static_low=-2.0, static_high=2.5),
    "channel": ActivationSpec(bits=6, axis="channel"),
    "asymmetric channel": ActivationSpec(bits=6, axis="channel", symmetric=False, clip_high=0.9),
    "sixteen bits": ActivationSpec(bits=16),
}
BRANCHES = {"none": None, "before the rounding": False, "behind the rounding": True}


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    limit, EXPANDED.limit = EXPANDED.limit, 0
    yield
    EXPANDED.limit = limit


def made(
    weight: WeightSpec, spec: ActivationSpec, *, branch: bool | None = None, dtype: Any = None
) -> QuantLinear:
    torch.manual_seed(0)
    linear = nn.Linear(WIDTH, OUT)
    rank = LowRank(torch.randn(4, WIDTH).half(), torch.randn(OUT, 4), rounded=bool(branch))
    return quantize_linear(
        linear, weight, spec,
        transforms=[ChannelScale(torch.rand(WIDTH) + 0.5), Hadamard(torch.ones(WIDTH))],
        low_rank=None if branch is None else rank,
    )  # fmt: skip


def plain(layer: QuantLinear, x: Tensor) -> Tensor:
    """The formula of the layer, on whole tensors, from codes and grid."""
    weight = layer.codes
    if layer.grid is not None:
        weight = decode(layer.codes.float(), expand(layer.grid, layer.weight_spec.group))
    exact = layer.transform(x)
    rounded = quantize_activation(exact, layer.activation_spec)
    assert layer.bias is not None
    y = nn.functional.linear(rounded, weight.to(x.dtype), layer.bias.to(x.dtype))
    if layer.low_rank is not None:
        y = y + layer.low_rank(rounded if layer.low_rank.rounded else exact)
    return y


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("name", WEIGHTS)
def test_a_layer_computes_the_bits_of_its_formula(
    name: str, branch: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = made(WEIGHTS[name], ActivationSpec(bits=6), branch=BRANCHES[branch])
    x = torch.randn(2, 7, WIDTH).to(dtype)
    given = x.clone()
    monkeypatch.setattr(expansion, "CHUNK", 8 * WIDTH)  # 40 rows in five parts
    assert torch.equal(layer(x), plain(layer, x))
    assert torch.equal(x, given)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_chunks_of_tokens_are_rounded_to_the_same_bits(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ACTIVATIONS[name]
    x = (torch.randn(2, 13, WIDTH) * torch.rand(WIDTH) * 3).to(dtype)
    for value in (x, x.transpose(0, 1), x[:, 2:9], x[0]):
        wanted = quantize_activation(value, spec)
        monkeypatch.setattr(activation, "_CPU_CHUNK", 2 * WIDTH)
        before = value.clone()
        assert torch.equal(round_activation(value, spec), wanted)
        assert torch.equal(value, before)
        assert torch.equal(round_activation(before, spec, inplace=True), wanted)


def test_whole_tensors_are_rounded_as_the_grid_says() -> None:
    x, spec = torch.randn(3, WIDTH), ActivationSpec(bits=4)
    grid = activation.activation_grid(x, spec)
    assert torch.equal(round_activation(x, spec), fake_quantize(x, grid, 4))


def test_a_gradient_goes_through_the_layer_as_before() -> None:
    layer = made(WeightSpec(bits=4), ActivationSpec(bits=4), branch=False)
    x, y = torch.randn(5, WIDTH, requires_grad=True), torch.randn(5, OUT)
    (layer(x) * y).sum().backward()
    wanted = x.grad
    x.grad = None
    (plain(layer, x) * y).sum().backward()
    assert wanted is not None and x.grad is not None
    assert torch.equal(wanted, x.grad)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False])
def test_codes_and_weight_come_back_at_every_width(bits: int, symmetric: bool) -> None:
    torch.manual_seed(0)
    weight = torch.randn(19, 21)  # rows that end within a byte
    grid = stored_grid(weight_grid(weight, bits, symmetric=symmetric, group=7))
    codes = encode(weight, expand(grid, 7), bits)
    layer = QuantLinear(
        weight=WeightSpec(bits=bits, symmetric=symmetric, group=7), codes=codes, grid=grid,
        bias=None, transforms=(), activation=ActivationSpec(bits=16),
    )  # fmt: skip
    assert layer.packed.numel() == -(-codes.numel() * bits // 8)
    assert torch.equal(layer.codes.float(), codes)
    assert torch.equal(layer.dequantized(), decode(codes, expand(grid, 7)))


def test_a_code_outside_the_grid_is_refused_and_not_wrapped() -> None:
    linear = nn.Linear(8, 8)
    grid = stored_grid(weight_grid(linear.weight.detach(), 4))
    with pytest.raises(ValueError, match=r"codes -9\.\.0 lie outside -8\.\.7"):
        quantize_linear(
            linear, WeightSpec(bits=4), ActivationSpec(bits=16), grid=grid,
            codes=torch.diag(torch.full((8,), -9.0)),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "rank"),
    [
        (WeightSpec(bits=4), 0),
        (WeightSpec(bits=4), 32),
        (WeightSpec(bits=4, symmetric=False, group=64), 0),
    ],
)
def test_a_four_bit_weight_takes_at_most_six_tenths_of_a_byte(spec: WeightSpec, rank: int) -> None:
    torch.manual_seed(0)
    width = 2048
    linear = nn.Linear(width, width, bias=True)
    generator = torch.Generator().manual_seed(0)
    branch = None
    if rank:
        down, up = torch.randn(rank, width).half(), torch.randn(width, rank).half()
        branch = LowRank(down.float(), up.float(), rounded=False)
    layer = quantize_linear(
        linear, spec, ActivationSpec(bits=6), transforms=[Hadamard.random(width, generator)],
        low_rank=branch,
    )  # fmt: skip
    again = QuantLinear.rebuild(layer.describe(), layer.stored())
    again(torch.randn(1, 3, width))
    assert 0.5 < bytes_per_weight(nn.Sequential(again)) <= 0.6


def test_forms_with_the_same_codes_hold_them_once_also_after_a_move() -> None:
    linear = nn.Linear(64, 64)
    forms = [
        quantize_linear(linear, WeightSpec(bits=4), ActivationSpec(bits=bits)) for bits in (4, 8)
    ]
    alone = resident_bytes(forms[0])
    layer = SwitchedLinear(forms)
    assert resident_bytes(layer) == alone
    assert resident_bytes(layer._apply(lambda value: value.clone())) == alone
    assert call_bytes(layer, 10, torch.float32) == call_bytes(forms[0], 10, torch.float32)


def test_layers_of_one_width_share_the_matrices_of_their_rotation() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (Hadamard.random(64, generator) for _ in range(2))
    assert resident_bytes(nn.Sequential(one, other)) == 2 * 64  # signs


class Live(TorchDispatchMode):
    """Most bytes of tensors made while it is active that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {
            t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)
        }
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                place = storage._cdata
                if place not in self.sizes and place not in given:
                    self.sizes[place] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.most = max(self.most, self.now)
                    weakref.finalize(storage, self.free, place)
        return out

    def free(self, place: int) -> None:
        self.now -= self.sizes.pop(place, 0)


@torch.no_grad()
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_rounding_takes_at_most_twice_the_input(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation, "_CPU_CHUNK", 1 << 14)
    x = torch.randn(2, 1024, 192).bfloat16()
    with Live() as live:
        round_activation(x, ACTIVATIONS[name])
    assert live.most <= 2 * x.nbytes


@torch.no_grad()
@pytest.mark.parametrize("kind", ["plain", "rotated", "kronecker", "branch", "behind"])
def test_a_call_takes_no_more_than_it_says(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation, "_CPU_CHUNK", 1 << 14)
    monkeypatch.setattr(expansion, "CHUNK", 1 << 12)
    monkeypatch.setattr("harness.quant.layers.footprint.CHUNK", 1 << 12)
    torch.manual_seed(0)
    width, out, tokens = 192, 256, 1024
    transforms: dict[str, list[nn.Module]] = {
        "rotated": [Hadamard(torch.ones(width))],
        "kronecker": [Kronecker(torch.eye(12), torch.eye(16))],
    }
    branch = LowRank(torch.randn(4, width), torch.randn(out, 4), rounded=kind == "behind")
    layer = quantize_linear(
        nn.Linear(width, out), WeightSpec(bits=4, group=64), ActivationSpec(bits=6),
        transforms=transforms.get(kind, [ChannelScale(torch.ones(width))]),
        low_rank=branch if kind in ("branch", "behind") else None,
    )  # fmt: skip
    x = torch.randn(1, tokens, width).bfloat16()
    layer(x[:, :1])  # the matrices of a rotation are made once
    with Live() as live:
        layer(x)
    said = call_bytes(layer, tokens, torch.bfloat16, device="cpu")
    small = 2 * (4 * (width + out + tokens) + out)  # branch and bias in bfloat16
    assert said.peak / 2 < live.most <= said.peak + small
    assert said.rounding <= 2 * x.nbytes + activation._CPU_CHUNK * 16


def test_expanded_weights_stay_within_the_budget_and_go_with_their_layer() -> None:
    kept = ExpandedWeights(limit=3000)
    one, other = nn.Linear(1, 1), nn.Linear(1, 1)

    def make() -> Tensor:
        return torch.zeros(500)

    assert kept.get(one, torch.float32, make) is kept.get(one, torch.float32, make)
    assert kept.get(other, torch.float32, make) is not kept.get(other, torch.float32, make)
    assert (kept.used(), kept.used(one), kept.used(other)) == (2000, 2000, 0)
    half = kept.get(one, torch.float16, lambda: torch.zeros(500, dtype=torch.float16))
    assert half.dtype == torch.float16 and kept.used() == 1000
    del one
    assert kept.used() == 0


def test_a_layer_that_moves_or_is_copied_keeps_no_stale_weight() -> None:
    EXPANDED.limit = 1 << 20
    layer = made(WeightSpec(bits=4), ActivationSpec(bits=16))
    x = torch.randn(3, WIDTH)
    before = layer(x)
    assert EXPANDED.used(layer) == WIDTH * OUT * 4
    assert EXPANDED.used(copy.deepcopy(layer)) == 0
    layer._apply(lambda value: value * 2 if value.is_floating_point() else value)
    assert EXPANDED.used(layer) == 0
    assert not torch.equal(layer(x), before)


@pytest.mark.parametrize(("text", "limit"), [("", 32 << 20), ("0", 0), ("5", 5 << 20)])
def test_the_budget_is_a_setting(text: str, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(expansion.SETTING, text)
    assert expansion._limit() == limit


def test_a_budget_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(expansion.SETTING, "much")
    with pytest.raises(UsageError, match="HARNESS_EXPANDED_MB is 'much'"):
        expansion._limit()


def test_a_specification_can_be_changed_after_the_layer_was_made() -> None:
    layer = made(WeightSpec(bits=4), ActivationSpec(bits=4))
    layer.activation_spec = dataclasses.replace(layer.activation_spec, bits=8)
    x = torch.randn(3, WIDTH)
    assert torch.equal(layer(x), plain(layer, x))
