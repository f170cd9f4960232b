"""Integer sums are exact, and a scaled product is that of the values on the grids."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from harness.quant.layers.grid import Affine, code_range
from harness.quant.layers.pack import pack, unpack
from tests.kernels.triton.parts import (
    Weight,
    int8_linear,
    int8_matmul,
    lane_sums,
    most_features,
    prepare_weight,
    random_lanes,
    seeded,
    to_lanes,
)

# tokens, in, out: one token; odd everything; one more than tiles of 64 and 128
SHAPES = ((1, 96, 8), (5, 201, 70), (67, 130, 129), (16, 32, 64))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bits", [4, 6, 8])
def test_sums_are_those_of_integers(device: str, shape: tuple[int, int, int], bits: int) -> None:
    tokens, width, rows = shape
    generator = seeded(bits)
    codes = random_lanes(tokens, width, 8, generator)
    weight = random_lanes(rows, width, bits, generator)
    found = int8_matmul(codes.to(device), weight.to(device), bits=bits)
    wanted = codes.long() @ weight.long().T
    assert found.dtype == torch.int32
    assert torch.equal(found.cpu().long(), wanted)
    if bits == 4 and width % 2 == 0:
        for lanes, signed in ((weight, True), (weight + 8, False)):
            packed = pack(lanes, 4).view(rows, -1).to(device)
            found = int8_matmul(codes.to(device), packed, bits=4, signed=signed)
            assert torch.equal(found.cpu().long(), wanted)


def test_codes_at_the_ends_of_their_range(device: str) -> None:
    for low, high in ((-128, -128), (127, 127), (-128, 127)):
        codes = torch.full((2, 256), low, dtype=torch.int8)
        weight = torch.full((3, 256), high, dtype=torch.int8)
        found = int8_matmul(codes.to(device), weight.to(device), bits=8)
        assert found.cpu().unique().tolist() == [256 * low * high]


def whole_weight(
    rows: int, width: int, bits: int, group: int, symmetric: bool, generator: torch.Generator
) -> tuple[Tensor, Affine, Weight]:
    """Codes, their grid with steps that are powers of two, and both as the kernels read them."""
    low, high = code_range(bits, symmetric)
    groups = width // group if group else 1
    codes = torch.randint(low, high + 1, (rows, width), generator=generator)
    scale = 2.0 ** torch.randint(0, 2, (rows, groups), generator=generator)
    zero = None
    if not symmetric:
        zero = torch.randint(low, high + 1, (rows, groups), generator=generator)
    made = prepare_weight(pack(codes, bits), (rows, width), scale, zero, bits=bits, group=group)
    return codes, Affine(scale, zero), made


def values(codes: Tensor, grid: Affine) -> Tensor:
    """Float64 values of codes ``[rows, in]`` on a grid ``[rows, groups]``."""
    parts = codes.double().view(len(codes), grid.scale.shape[1], -1)
    if grid.zero is not None:
        parts = parts - grid.zero.double()[..., None]
    return (parts * grid.scale.double()[..., None]).view(codes.shape)


def moved(weight: Weight, device: str) -> Weight:
    tensors = (weight.data, weight.scale, weight.zero, weight.sums)
    data, scale, zero, sums = (None if t is None else t.to(device) for t in tensors)
    return weight._replace(data=data, scale=scale, zero=zero, sums=sums)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("bits", [3, 4, 6, 8])
@pytest.mark.parametrize("groups", [(0, 0), (0, 64), (64, 0), (64, 64), (0, 96), (0, 128)], ids=str)
@pytest.mark.parametrize("x_symmetric", [True, False])
@pytest.mark.parametrize("w_symmetric", [True, False])
def test_a_product_with_steps_of_powers_of_two_is_exact(
    device: str, bits: int, groups: tuple[int, int], x_symmetric: bool, w_symmetric: bool
) -> None:
    x_group, w_group = groups
    group = x_group or w_group
    tokens, width, rows = 3, 256 if group == 128 else 192, 37
    generator = seeded(bits)
    low, high = code_range(8, x_symmetric)
    count = width // x_group if x_group else 1
    x_codes = torch.randint(low, high + 1, (tokens, width), generator=generator)
    x_scale = 2.0 ** torch.randint(0, 2, (tokens, count), generator=generator)
    x_zero = None
    if not x_symmetric:
        x_zero = torch.randint(low, high + 1, (tokens, count), generator=generator)
    codes, grid, weight = whole_weight(rows, width, bits, w_group, w_symmetric, generator)
    weight = moved(weight, device)
    lanes = x_codes.to(torch.int8) if x_symmetric else to_lanes(x_codes, 8)
    point = None if x_zero is None else to_lanes(x_zero, 8).to(device)
    found = int8_linear(
        lanes.to(device), x_scale.to(device), point,
        weight.data, weight.scale, weight.zero, bits=bits, group=group,
        w_sums=weight.sums if w_group == group else None, out_dtype=torch.float32,
    )  # fmt: skip
    wanted = values(x_codes, Affine(x_scale, x_zero)) @ values(codes, grid).T
    assert float(wanted.abs().max()) < 2**24  # whole numbers that float32 holds
    assert torch.equal(found.cpu().double(), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rank", [1, 32, 33])
def test_bias_and_branch_are_added_before_the_one_rounding(
    device: str, dtype: torch.dtype, rank: int
) -> None:
    generator = seeded(rank)
    codes = random_lanes(5, 64, 8, generator)
    _, grid, weight = whole_weight(70, 64, 4, 0, False, generator)
    weight = moved(weight, device)
    scale = torch.rand(5, 1, generator=generator) / 64
    bias = torch.randn(70, generator=generator).to(dtype)
    inner = torch.randn(5, rank, generator=generator).to(dtype)
    up = torch.randn(70, rank, generator=generator).to(dtype)
    out = torch.full((5, 70), torch.nan, dtype=dtype, device=device)
    found = int8_linear(
        codes.to(device), scale.to(device), None, weight.data, weight.scale, weight.zero, bits=4,
        bias=bias.to(device), low_rank=(inner.to(device), up.to(device)), out_dtype=dtype, out=out,
    )  # fmt: skip
    assert found is out
    stored = unpack(weight.data.cpu().view(-1), 4, (70, 64), signed=False)
    wanted = values(codes, Affine(scale, None)) @ values(stored, grid).T
    wanted = wanted + bias.double() + inner.double() @ up.double().T
    largest = float(wanted.abs().max())
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(
        found.cpu().double(), wanted, rtol=step / 2 + 1e-6, atol=largest * 1e-6
    )


def test_a_static_step_is_one_for_all_tokens(device: str) -> None:
    generator = seeded(11)
    codes = random_lanes(4, 64, 8, generator)
    stored, grid, weight = whole_weight(9, 64, 8, 0, True, generator)
    weight = moved(weight, device)
    scale = torch.tensor(0.25, device=device)
    zero = torch.tensor(-7, dtype=torch.int8, device=device)
    found = int8_linear(
        codes.to(device), scale, zero, weight.data, weight.scale, None, bits=8,
        w_sums=weight.sums, out_dtype=torch.float32,
    )  # fmt: skip
    wanted = (codes.double() + 7) * 0.25 @ values(stored, grid).T
    assert torch.equal(found.cpu().double(), wanted)


def test_a_weight_that_is_laid_out_by_rows_gives_the_same(device: str) -> None:
    generator = seeded(12)
    codes = random_lanes(4, 128, 8, generator).to(device)
    _, _, weight = whole_weight(9, 128, 4, 64, False, generator)
    weight = moved(weight, device)
    scale = torch.ones(4, 1, device=device)
    given = {"bits": 4, "group": 64, "out_dtype": torch.float32}
    zero = torch.full((4, 1), 3, dtype=torch.int8, device=device)
    found = [
        int8_linear(codes, scale, zero, weight.data, steps, points, w_sums=sums, **given)
        for steps, points, sums in (
            (weight.scale, weight.zero, weight.sums),
            (weight.scale.contiguous(), weight.zero.contiguous(), None),
        )
    ]
    assert torch.equal(*found)


def test_the_bounds_of_an_int32_sum() -> None:
    assert [most_features(x, w) for x, w in ((False, False), (True, False), (True, True))] == [
        131071, 65535, 32767,
    ]  # fmt: skip
    assert 131071 * 2**14 < 2**31 <= 131072 * 2**14


def test_the_longest_sum_is_exact_and_a_longer_one_refused(device: str) -> None:
    codes = torch.full((1, 131072), -128, dtype=torch.int8, device=device)
    assert int8_matmul(codes[:, :-1], codes[:, :-1].contiguous(), bits=8).item() == 131071 * 2**14
    with pytest.raises(ValueError, match="at most 131071"):
        int8_matmul(codes, codes, bits=8)
    one = torch.ones(1, 1, device=device)
    point = torch.zeros(1, 1, dtype=torch.int8, device=device)
    wide = codes[:, :65536].contiguous()
    with pytest.raises(ValueError, match="at most 65535"):
        int8_linear(wide, one, point, wide, one, None, bits=8)


def test_what_does_not_fit_is_refused(device: str) -> None:
    codes = torch.zeros(2, 64, dtype=torch.int8, device=device)
    weight = torch.zeros(3, 64, dtype=torch.int8, device=device)
    x_scale, w_scale = torch.ones(2, 1, device=device), torch.ones(3, 1, device=device)
    point = torch.zeros(2, 1, dtype=torch.int8, device=device)
    packed = torch.zeros(3, 32, dtype=torch.uint8, device=device)
    plain = {"codes": codes, "x_scale": x_scale, "x_zero": None, "weight": weight,
             "w_scale": w_scale, "w_zero": None, "bits": 8}  # fmt: skip
    half = torch.ones(2, 4, device=device)
    for change, words in (
        ({"codes": codes.to(torch.uint8)}, "expected int8"),
        ({"weight": weight[:, :32].contiguous()}, "a weight of shape"),
        ({"weight": packed}, "packed codes"),
        ({"weight": weight.float()}, "expected int8 lanes"),
        ({"x_scale": half}, "steps of the tokens"),
        ({"w_scale": w_scale.half()}, "steps of the weight"),
        ({"x_zero": point.int()}, "zero points of the tokens"),
        ({"group": 48}, "multiple of group size"),
        ({"group": 16}, "multiple of 32"),
        ({"x_zero": point, "w_sums": lane_sums(weight, 32)}, "lane_sums"),
        ({"bias": x_scale}, "the bias"),
        ({"low_rank": (half, half)}, "a branch of shapes"),
        ({"low_rank": (half, torch.ones(3, 4, device=device).half())}, "a branch of dtypes"),
        ({"out_dtype": torch.int8}, "out_dtype"),
        ({"out": half}, "out is"),
        ({"bits": 9}, "2 to 8"),
    ):
        given = plain | change
        names = ("codes", "x_scale", "x_zero", "weight", "w_scale", "w_zero")
        places = [given.pop(name) for name in names]
        with pytest.raises(ValueError, match=words):
            int8_linear(*places, **given)


def test_no_tokens_give_no_rows(device: str) -> None:
    codes = torch.zeros(0, 32, dtype=torch.int8, device=device)
    weight = torch.zeros(3, 32, dtype=torch.int8, device=device)
    assert int8_matmul(codes, weight, bits=8).shape == (0, 3)
