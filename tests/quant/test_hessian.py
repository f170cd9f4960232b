"""Second moments: whose tokens they are of, and the output error that follows from them."""

from __future__ import annotations

import pytest
import torch

from harness.models.families.base import InputGroup
from harness.quant.calibration.hessian import Hessian, linear_hessians, output_error
from harness.quant.layers.transform import Hadamard
from tests.quant.test_statistics import FAMILY, block_and_inputs, seen_by


def test_a_hessian_without_inputs_is_refused() -> None:
    with pytest.raises(ValueError, match="no input"):
        Hessian(4).matrix()


def test_the_output_error_is_that_of_the_outputs() -> None:
    x = torch.randn(60, 12, generator=torch.Generator().manual_seed(7))
    hessian = Hessian(12)
    hessian.add(x)
    weight = torch.randn(5, 12, generator=torch.Generator().manual_seed(8))
    rounded = (weight * 2).round() / 2
    exact = x.double() @ weight.double().T
    wrong = x.double() @ rounded.double().T - exact
    expected = float(wrong.square().sum() / exact.square().sum())
    assert output_error(weight, rounded, hessian.matrix()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("split", [True, False])
def test_linears_of_a_split_group_have_hessians_of_their_own_tokens(split: bool) -> None:
    block, inputs = block_and_inputs()
    names = ("attn1.to_q", "ff.net.0.proj")
    group = InputGroup(name="both", role="attention_out", linears=names, split=split)
    turn = Hadamard.random(32, torch.Generator().manual_seed(1))
    found = linear_hessians(block, FAMILY, [group], {"both": [turn]}, inputs)
    for name in names:
        x = turn(seen_by(block, name if split else names[0], inputs))
        torch.testing.assert_close(found[name].float(), 2 * x.T @ x / len(x), rtol=1e-4, atol=1e-4)
    assert (found[names[0]] is found[names[1]]) != split
