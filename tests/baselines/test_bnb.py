"""bitsandbytes' NF4 row."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from baselines.bnb import BLOCK, BitsAndBytesNF4
from harness.bits import BitSpec
from harness.errors import UnsupportedError
from harness.models.families import family_by_name as family
from harness.models.families.base import target_linears
from harness.models.trajectories import record_pool
from harness.quant.layers.library import LibraryLinear, installed_version
from harness.run.worker import failure
from harness.testing.conformance import PROMPTS, TINY_GEN, Bench, MethodConformance, tiny_pipeline
from tests.baselines.back_ends import FAMILY, converted, error, miniature, one_layer

if TYPE_CHECKING:
    from harness.method import Method

WIDTH = 64  # narrower layers are refused, see below

needs_bnb = pytest.mark.skipif(
    not installed_version("bitsandbytes"), reason="bitsandbytes is not installed"
)


@pytest.mark.parametrize("bits", ["w4a4", "w8a16", "w8a8", "w16a16"])
def test_a_weight_only_library_is_refused_under_any_other_label(bits: str) -> None:
    answer = BitsAndBytesNF4().supports(FAMILY, BitSpec.parse(bits))
    assert answer is not None
    assert "weight-only" in answer.reason
    assert f"never as {bits}" in answer.reason


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("harness.quant.layers.library.installed_version", lambda library: "")
    answer = BitsAndBytesNF4().supports(FAMILY, BitSpec.parse("w4a16"))
    assert answer is not None
    assert "pip install 'vdit-quant-harness[bnb]'" in answer.reason


@needs_bnb
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_alone_are_rounded_and_the_row_says_that_it_dequantizes(
    dtype: torch.dtype,
) -> None:
    transformer, report = converted(BitsAndBytesNF4(), "w4a16", dtype, WIDTH)
    assert report.execution == "dequantize:bitsandbytes"
    assert {(x.w_bits, x.a_bits, x.group) for x in report.layers} == {(4, 16, BLOCK)}
    assert {x.name for x in report.layers} == set(target_linears(family(FAMILY), miniature()))
    layers = [m for m in transformer.modules() if isinstance(m, LibraryLinear)]
    assert [problem for layer in layers for problem in layer.problems()] == []
    assert 0 < error(transformer, WIDTH) < 0.1


@needs_bnb
def test_a_block_of_64_uses_sixteen_levels_of_its_largest_magnitude() -> None:
    transformer, _ = converted(BitsAndBytesNF4(), "w4a16", width=WIDTH, double_quant=False)
    name = "transformer_blocks.0.ff.net.0.proj"
    layer, plain = transformer.get_submodule(name), miniature(width=WIDTH).get_submodule(name)
    assert isinstance(layer, LibraryLinear)
    assert isinstance(plain, nn.Linear)
    with torch.no_grad():
        weight = (layer(torch.eye(plain.in_features)) - layer.inner.bias).T.double()
    blocks = zip(
        weight.reshape(-1, BLOCK).tolist(),
        plain.weight.double().reshape(-1, BLOCK).tolist(),
        strict=True,
    )
    levels: set[float] = set()
    for rounded, exact in blocks:
        largest = max(abs(value) for value in exact)
        levels |= {round(value / largest, 4) for value in rounded}
        # NF4's coarsest gap is 0.3 of the largest magnitude.
        assert all(abs(r - e) <= 0.16 * largest for r, e in zip(rounded, exact, strict=True))
    assert 8 < len({round(level, 2) for level in levels}) <= 16
    assert math.isclose(max(levels), 1.0, abs_tol=1e-3)


@needs_bnb
def test_calling_a_layer_changes_nothing_in_it() -> None:
    transformer, _ = converted(BitsAndBytesNF4(), "w4a16", width=WIDTH)
    layer = transformer.get_submodule("transformer_blocks.0.ff.net.2").eval()
    assert isinstance(layer, LibraryLinear)
    before = {name: value.clone() for name, value in layer.stored().items()}
    with torch.no_grad():
        layer(torch.randn(4, layer.in_features))
    after = layer.stored()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@needs_bnb
def test_weights_that_the_library_gives_back_wrong_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from bitsandbytes import functional

    def shifted(codes: Any, state: Any) -> torch.Tensor:
        return honest(codes, state).flatten().roll(BLOCK).reshape(state.shape)

    honest = functional.dequantize_4bit
    monkeypatch.setattr(functional, "dequantize_4bit", shifted)
    with pytest.raises(UnsupportedError, match="wrong weights back on cpu") as refused:
        one_layer(BitsAndBytesNF4(), "w4a16", nn.Linear(BLOCK + 32, 8))
    assert failure(refused.value)["status"] == "unsupported"


@needs_bnb
def test_scales_that_differ_widely_are_rounded_badly_by_right_and_not_refused() -> None:
    linear = nn.Linear(2 * BLOCK, 64)
    with torch.no_grad():
        linear.weight[:, :BLOCK] *= 1000
    assert one_layer(BitsAndBytesNF4(), "w4a16", linear).problems() == []


@needs_bnb
class TestOnAWiderMiniature(MethodConformance):
    """The battery; the families' miniatures are too narrow for the library on a CPU."""

    @pytest.fixture(scope="class")
    @classmethod
    def method(cls) -> Method:
        return BitsAndBytesNF4()

    @pytest.fixture(scope="class")
    @classmethod
    def bench(cls, tmp_path_factory: pytest.TempPathFactory) -> Bench:
        folder, pipeline = tmp_path_factory.mktemp("wide"), tiny_pipeline(family=FAMILY)
        pipeline.register_modules(transformer=miniature(width=WIDTH))
        (folder / "pool").mkdir()
        pool = record_pool(
            pipeline, PROMPTS[:2], TINY_GEN, seed=0, folder=folder / "pool",
            progress=lambda fraction, text: None,
        )  # fmt: skip
        return Bench(pipeline=pipeline, family=FAMILY, pool=pool, folder=folder)
