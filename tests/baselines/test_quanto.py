"""optimum-quanto's rows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from baselines.quanto import Quanto, no_compiler
from harness.bits import BitSpec
from harness.errors import UnsupportedError
from harness.models.families import family_by_name as family
from harness.models.families.base import target_linears
from harness.quant.layers.library import LibraryLinear, installed_version
from tests.baselines.back_ends import FAMILY, converted, error, miniature, one_layer

needs_quanto = pytest.mark.skipif(
    not installed_version("optimum-quanto"), reason="optimum-quanto is not installed"
)


needs_compiler = pytest.mark.skipif(no_compiler() is not None, reason="needs a C++ compiler")


@pytest.mark.parametrize("bits", ["w4a4", "w8a8", "w2a16", "w16a16"])
def test_a_weight_only_library_is_refused_under_any_other_label(bits: str) -> None:
    answer = Quanto().supports(FAMILY, BitSpec.parse(bits))
    assert answer is not None
    assert "weight-only" in answer.reason
    assert f"never as {bits}" in answer.reason


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("harness.quant.layers.library.installed_version", lambda library: "")
    answer = Quanto().supports(FAMILY, BitSpec.parse("w4a16"))
    assert answer is not None
    assert "pip install 'vdit-quant-harness[quanto]'" in answer.reason


@needs_quanto
def test_four_bits_without_a_compiler_are_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    answer = Quanto().supports(FAMILY, BitSpec.parse("w4a16"))
    assert answer is not None
    assert "no C++ compiler 'no-such-compiler'" in answer.reason
    assert Quanto().supports(FAMILY, BitSpec.parse("w8a16")) is None


@needs_quanto
@needs_compiler
def test_weights_alone_are_rounded_and_the_row_says_that_it_dequantizes() -> None:
    errors = {}
    for bits in (8, 4):
        transformer, report = converted(Quanto(), f"w{bits}a16")
        assert report.execution == "dequantize:optimum-quanto"
        assert "floating point" in report.notes[0]
        assert {(x.w_bits, x.a_bits, x.symmetric) for x in report.layers} == {(bits, 16, bits == 8)}
        assert {x.name for x in report.layers} == set(target_linears(family(FAMILY), miniature()))
        layers = [m for m in transformer.modules() if isinstance(m, LibraryLinear)]
        assert [problem for layer in layers for problem in layer.problems()] == []
        errors[bits] = error(transformer)
    assert 0 < errors[8] < errors[4] < 0.1


@needs_quanto
def test_eight_bits_are_the_largest_magnitude_of_a_row_in_127_steps() -> None:
    transformer, _ = converted(Quanto(), "w8a16")
    name = "transformer_blocks.0.ff.net.2"
    layer, plain = transformer.get_submodule(name), miniature().get_submodule(name)
    assert isinstance(layer, LibraryLinear)
    assert isinstance(plain, nn.Linear)
    rows = []
    for row in plain.weight.double().tolist():
        step = max(abs(value) for value in row) / 127
        rows.append([round(value / step) * step for value in row])
    x = torch.randn(3, plain.in_features, generator=torch.Generator().manual_seed(0))
    wanted = x.double() @ torch.tensor(rows, dtype=torch.float64).T + plain.bias.double()
    with torch.no_grad():
        assert torch.allclose(layer(x).double(), wanted, rtol=1e-4, atol=1e-5)


@needs_quanto
@needs_compiler
def test_a_product_that_may_end_the_process_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="reads past the end of its inputs"):
        one_layer(Quanto(), "w8a16", nn.Linear(64, 64, dtype=torch.bfloat16))
    assert one_layer(Quanto(), "w8a16", nn.Linear(24, 8)).problems() == []
    one_layer(Quanto(), "w4a16", nn.Linear(64, 64, dtype=torch.bfloat16))
