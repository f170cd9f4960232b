"""The kernel of x86 processors computes what the simulation computes, on either of its units."""

from __future__ import annotations

import itertools
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import torch

from harness.kernels.x86 import library, threads
from harness.kernels.x86.kernel import X86Int8
from harness.kernels.x86.rows import segment_of
from harness.quant.layers.activation import ActivationSpec, activation_grid, quantize_activation
from harness.quant.layers.grid import Affine
from harness.quant.layers.linear import QuantLinear, WeightSpec, quantize_linear
from harness.quant.layers.low_rank import LowRank
from harness.quant.layers.transform import ChannelScale, Hadamard, Kronecker, kronecker_sizes
from tests.kernels.exact import by_kernel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

pytestmark = pytest.mark.skipif(library.missing() is not None, reason=library.missing() or "")

KERNEL = X86Int8()
CPU = torch.device("cpu")
TIPPED = 1e-4
"""Share of codes that a rotation with sums in another order may tip by a level."""


@pytest.fixture(params=["amx", "vnni"], autouse=True)
def units(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Both units where the processor has them."""
    if request.param == "amx" and not library.tile_units():
        pytest.skip("the processor has no tile units")
    if request.param == "vnni":
        monkeypatch.setenv(library.SETTING, "avx512_vnni")
    library.tile_units.cache_clear()
    yield request.param
    monkeypatch.undo()
    library.tile_units.cache_clear()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(width: int, outputs: int, dtype: torch.dtype = torch.float32) -> torch.nn.Linear:
    made = torch.nn.Linear(width, outputs).requires_grad_(False)
    made.weight.copy_(noise(outputs, width, seed=1))
    made.bias.copy_(noise(outputs, seed=2))
    return made.to(dtype)


def products(layer: QuantLinear, values: Tensor) -> Tensor:
    """A layer of a rounded input, in double precision."""
    bias = torch.zeros(1) if layer.bias is None else layer.bias
    return values.double() @ layer.dequantized().double().t() + bias.double()


ACTIVATIONS: list[dict[str, Any]] = [
    {}, {"static_low": -2.0, "static_high": 3.0}, {"clip_low": 0.9, "clip_high": 0.8},
    {"group": 64}, {"group": 32},
]  # fmt: skip


@pytest.mark.parametrize("w", [2, 4, 6, 8])
@pytest.mark.parametrize("a", [3, 6, 8])
@pytest.mark.parametrize("more", ACTIVATIONS)
def test_a_layer_of_any_grid_is_that_of_the_simulation(
    w: int, a: int, more: dict[str, Any]
) -> None:
    width, outputs = 192, 70
    x = noise(3, 15, width) + 0.3
    x[0, 1] *= 100
    x[0, 2] = 0
    every = itertools.product((True, False), (True, False), (0, 96, 64, 32))
    for weight_symmetric, symmetric, group in every:
        made = quantize_linear(
            linear(width, outputs),
            WeightSpec(bits=w, symmetric=weight_symmetric, group=group),
            ActivationSpec(bits=a, symmetric=symmetric, **more),
        )
        assert KERNEL.refusal(made) is None
        found = by_kernel(made, KERNEL)
        values = found.shared.read(x).codes.values_of(torch.float32)
        assert torch.equal(values, quantize_activation(x.view(-1, width), made.activation_spec))
        expected = products(made, values).view(3, 15, outputs)
        error = (found(x) - expected).abs().amax() / expected.abs().amax()
        assert float(error) < 1e-5, (weight_symmetric, symmetric, group)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("symmetric", [True, False])
def test_inputs_of_16_bits_have_the_codes_of_the_simulation(
    dtype: torch.dtype, symmetric: bool
) -> None:
    spec = ActivationSpec(bits=6, symmetric=symmetric)
    made = quantize_linear(linear(130, 40, dtype), WeightSpec(bits=4), spec)
    x = (noise(21, 130) + 0.2).to(dtype)
    found = by_kernel(made, KERNEL)
    assert torch.equal(found.shared.read(x).codes.values_of(dtype), quantize_activation(x, spec))
    y = found(x)
    assert y.dtype == dtype
    # one rounding to 16 bits of what is exact in 32
    wide = products(made, quantize_activation(x.float(), spec))
    assert float(((y - wide) / wide.abs().clamp_min(1)).abs().max()) < 2**-8


@pytest.mark.parametrize(
    ("tokens", "width", "outputs"),
    [(1, 32, 1), (31, 33, 31), (33, 100, 65), (290, 64, 32), (7, 3200, 33), (300, 6400, 40)],
)
@pytest.mark.parametrize("bits", [4, 8])
def test_sums_are_exact_at_every_size(tokens: int, width: int, outputs: int, bits: int) -> None:
    """Past 256 tokens and 3072 channels the input is taken in parts."""
    generator = torch.Generator().manual_seed(tokens)
    values = torch.randint(-128, 128, (tokens, width), generator=generator)
    half = 1 << (bits - 1)
    codes = torch.randint(-half, half, (outputs, width), generator=generator)
    # the largest sums that there are
    values[0], codes[0] = -128, -half
    made = QuantLinear(
        weight=WeightSpec(bits=bits), codes=codes, grid=Affine(torch.ones(outputs, 1), None),
        bias=None, transforms=(),
        activation=ActivationSpec(bits=8, static_low=-127.0, static_high=127.0),
    )  # fmt: skip
    out = torch.full((tokens, outputs), torch.nan)
    KERNEL.product(made)(KERNEL.reader([made])(values.float()).codes, out)
    # single precision holds a sum up to 2 ** 24; beyond, its nearest number
    assert torch.equal(out, (values @ codes.t()).float())


@pytest.mark.parametrize("group", [64, 128, 1600])
def test_groups_are_gathered_over_parts_of_the_channels(group: int) -> None:
    made = quantize_linear(
        linear(6400, 40), WeightSpec(bits=4, group=group), ActivationSpec(bits=6, group=group)
    )
    x = noise(300, 6400)
    expected = products(made, quantize_activation(x, made.activation_spec))
    error = (by_kernel(made, KERNEL)(x) - expected).abs().amax() / expected.abs().amax()
    assert float(error) < 1e-5


@pytest.mark.parametrize("width", [24, 96, 192, 1152, 1920, 2048, 3072])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rotated_input_has_the_codes_of_the_simulation(width: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    outer, inner = (noise(n, n, seed=n) / n**0.5 for n in kronecker_sizes(width))
    scale = ChannelScale(torch.rand(width, generator=generator) + 0.5)
    rotation = Hadamard.random(width, generator)
    x = noise(64, width).to(dtype)
    for chain in ([rotation], [Kronecker(outer, inner)], [scale, rotation], [scale]):
        spec = ActivationSpec(bits=6)
        made = quantize_linear(linear(width, 32, dtype), WeightSpec(bits=4), spec, transforms=chain)
        found = KERNEL.reader([made])(x).codes.values_of(torch.float32)
        exact = made.transform(x)
        step = activation_grid(exact.float(), spec).scale
        levels = (found - quantize_activation(exact.float(), spec)).abs() / step
        assert float(levels.max()) < 1.01
        assert float((levels > 0.5).float().mean()) <= TIPPED


@pytest.mark.parametrize("rounded", [True, False])
def test_a_branch_reads_the_rotated_input_before_or_behind_its_rounding(rounded: bool) -> None:
    made = quantize_linear(
        linear(96, 40), WeightSpec(bits=4, group=32), ActivationSpec(bits=6),
        transforms=[Hadamard.random(96, torch.Generator().manual_seed(0))],
        low_rank=LowRank(noise(4, 96), noise(40, 4), rounded=rounded),
    )  # fmt: skip
    x = noise(2, 33, 96)
    torch.testing.assert_close(by_kernel(made, KERNEL)(x), made(x), rtol=1e-4, atol=1e-3)


def test_a_transform_that_c_does_not_know_is_left_to_torch() -> None:
    class Negative(ChannelScale):
        def forward(self, x: Tensor) -> Tensor:
            return -super().forward(x)

    made = quantize_linear(linear(64, 40), WeightSpec(bits=4), ActivationSpec(bits=6))
    made.transforms.append(Negative(torch.rand(64) + 0.5))
    x = noise(5, 64)
    torch.testing.assert_close(by_kernel(made, KERNEL)(x), made(x), rtol=1e-5, atol=1e-4)


def test_several_threads_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    made = quantize_linear(
        linear(200, 150), WeightSpec(bits=4), ActivationSpec(bits=6, symmetric=False)
    )
    x = noise(301, 200)
    alone = by_kernel(made, KERNEL)(x)
    monkeypatch.setattr(threads.torch, "get_num_threads", lambda: 3)
    assert torch.equal(by_kernel(made, KERNEL)(x), alone)


def test_what_is_no_number_makes_no_number_of_its_token_alone() -> None:
    made = quantize_linear(linear(70, 40), WeightSpec(bits=4), ActivationSpec(bits=6))
    x = noise(6, 70)
    clean = by_kernel(made, KERNEL)(x)
    x[2, 5], x[4, 69] = torch.nan, torch.inf
    found = by_kernel(made, KERNEL)(x)
    kept = [0, 1, 3, 5]
    assert torch.equal(found[kept], clean[kept])
    assert not found[2].isfinite().any()
    assert not found[4].isfinite().all()


def test_an_input_of_double_precision_is_read_in_single() -> None:
    made = quantize_linear(linear(64, 40), WeightSpec(bits=4), ActivationSpec(bits=6))
    x = noise(5, 64)
    found = by_kernel(made, KERNEL)(x.double())
    assert found.dtype == torch.float64
    assert torch.equal(found.float(), by_kernel(made, KERNEL)(x))


def test_a_weight_of_four_bits_takes_half_a_byte() -> None:
    def size(bits: int, group: int = 0) -> float:
        made = quantize_linear(
            linear(1024, 512), WeightSpec(bits=bits, group=group), ActivationSpec(bits=6)
        )
        held = KERNEL.product(made)
        return sum(b.numel() * b.element_size() for b in held.buffers()) / (1024 * 512)

    assert 0.5 <= size(4) < 2 / 3.6  # of the two bytes of bfloat16
    assert 1.0 <= size(6) < 2 / 1.9
    assert 1.0 <= size(8) < 2 / 1.9
    assert 0.5 <= size(4, group=64) < 0.75


def test_segments_of_few_channels_and_sums_past_32_bits_are_refused() -> None:
    made = quantize_linear(
        linear(96, 8), WeightSpec(bits=4, group=16), ActivationSpec(bits=6, group=48)
    )
    assert segment_of(made) == 16
    assert KERNEL.refusal(made) == "steps are for 16 channels, fewer than 32"
    made.weight_spec, made.activation_spec = WeightSpec(bits=4), ActivationSpec(bits=6)
    made.in_features = 65_536
    assert "could leave 32 bits" in str(KERNEL.refusal(made))
    # unsigned lanes up to 255 times signed ones
    assert 255 * 128 * 65_535 < 1 << 31


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Nothing is compiled yet."""
    place = tmp_path / "cache"
    monkeypatch.setattr(library.platformdirs, "user_cache_dir", lambda name: str(place))
    for held in (library.missing, library.library):
        held.cache_clear()
    yield place
    monkeypatch.undo()
    for held in (library.missing, library.library):
        held.cache_clear()


def test_it_is_compiled_once(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert library.missing() is None
    made = [path.name for path in (fresh / "kernels").iterdir()]
    assert len(made) == 1
    assert made[0].endswith(".so")
    library.library.cache_clear()
    run = subprocess.run

    def asking(command: tuple[str, ...], **more: Any) -> Any:
        assert command[1:] == ("--version",)
        return run(command, **more)

    monkeypatch.setattr(library.subprocess, "run", asking)
    library.library()


@pytest.mark.usefixtures("fresh")
def test_a_compiler_that_does_not_know_tile_units_makes_the_rest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = library._compiler()
    old = tmp_path / "cc"
    old.write_text(f'#!/bin/sh\ncase "$*" in *amx*) exit 1;; esac\nexec {real} "$@"\n')
    old.chmod(0o755)
    monkeypatch.setenv("CC", str(old))
    assert library.missing() is None
    assert library.units() == "vnni"


@pytest.mark.usefixtures("fresh")
def test_why_it_does_not_run_here_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def told() -> str:
        library.missing.cache_clear()
        library.library.cache_clear()
        return library.missing() or ""

    broken = tmp_path / "cc"
    broken.write_text(
        "#!/bin/sh\n[ $1 = --version ] && exit 0\necho 'no AVX-512 here' >&2\nexit 1\n"
    )
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    assert told() == "it cannot be compiled here: no AVX-512 here"
    monkeypatch.delenv("CC")
    monkeypatch.setattr(library, "_COMPILERS", ("no-such-compiler",))
    assert told() == "there is no C compiler (no-such-compiler)"
    monkeypatch.setattr(library, "has", lambda flag: flag != "avx512_vnni")
    assert told() == "the processor has no avx512_vnni"
    monkeypatch.setenv(library.SETTING, "none")
    assert told() == "HARNESS_X86_UNITS is none"
    assert KERNEL.missing(torch.device("cuda")) == "it is for processors"
