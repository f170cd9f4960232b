"""Low-rank branches: what they compute, and that they survive saving."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from harness.quant.layers.activation import ActivationSpec, quantize_activation
from harness.quant.layers.artifact import MANIFEST, artifact_bytes, load_artifact_, save_artifact
from harness.quant.layers.group_size import fitting_group
from harness.quant.layers.linear import QuantLinear, WeightSpec, quantize_linear
from harness.quant.layers.low_rank import LowRank
from harness.quant.layers.transform import ChannelScale

if TYPE_CHECKING:
    from pathlib import Path

A4 = ActivationSpec(bits=4)


def half(*shape: int) -> Tensor:
    return torch.randn(*shape).half().float()


def branched(linear: nn.Linear, branch: LowRank) -> QuantLinear:
    return quantize_linear(
        linear, WeightSpec(bits=4), A4,
        transforms=[ChannelScale(torch.rand(linear.in_features) + 0.5)], low_rank=branch,
    )  # fmt: skip


@pytest.mark.parametrize("rounded", [False, True])
def test_the_branch_reads_the_input_before_or_after_the_rounding(rounded: bool) -> None:
    torch.manual_seed(0)
    branch = LowRank(half(2, 8), half(6, 2), rounded=rounded)
    layer, x = branched(nn.Linear(8, 6), branch), torch.randn(1, 5, 8)
    z = layer.transform(x)
    q = quantize_activation(z, A4)
    expected = torch.empty(1, 5, 6, dtype=torch.float64)
    weight, bias = layer.dequantized().double(), layer.bias
    for t in range(5):
        for o in range(6):
            value = (q[0, t].double() * weight[o]).sum() + bias[o].double()
            read = q if rounded else z
            for r in range(2):
                inner = (read[0, t].double() * branch.down[r].double()).sum()
                value = value + branch.up[o, r].double() * inner
            expected[0, t, o] = value
    assert torch.allclose(layer(x).double(), expected, atol=1e-5)


def test_a_gain_multiplies_the_tokens_of_its_frame_and_leaves_the_text() -> None:
    down, up = torch.ones(1, 3), torch.ones(2, 1)
    branch = LowRank(down, up, rounded=True, gain=torch.tensor([2.0, 5.0]), text_tokens=1)
    out = branch(torch.ones(1, 5, 3))  # one text token, two frames of two tokens
    assert out[0, :, 0].tolist() == [3, 6, 6, 15, 15]


def test_tokens_that_are_no_whole_frames_are_refused() -> None:
    branch = LowRank(torch.ones(1, 3), torch.ones(2, 1), rounded=True, gain=torch.ones(2))
    with pytest.raises(ValueError, match="are not 0 text tokens and 2 frames"):
        branch(torch.ones(1, 5, 3))


class _Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(64, 32), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.q(x), self.k(x)], -1)


def test_a_saved_branch_computes_the_same_and_a_shared_projection_is_stored_once(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    down = half(8, 64)
    sizes = {}
    for kind in ("shared", "apart"):
        model, exact = _Pair(), None
        start = {k: v.clone() for k, v in model.state_dict().items()}
        for name in ("q", "k"):
            own = down if kind == "shared" or name == "q" else half(8, 64)
            branch = LowRank(own, half(32, 8), rounded=False)
            setattr(model, name, branched(getattr(model, name), branch))
        (tmp_path / kind).mkdir()
        save_artifact(model, tmp_path / kind, {})
        exact, loaded = model, _Pair()
        loaded.load_state_dict(start)
        load_artifact_(loaded, tmp_path / kind)
        x = torch.randn(1, 4, 64)
        assert torch.equal(loaded(x), exact(x))
        sizes[kind] = artifact_bytes(tmp_path / kind)
    assert sizes["apart"] - sizes["shared"] > 8 * 64 * 2 - 200  # one projection in half precision
    manifest = json.loads((tmp_path / "shared" / MANIFEST).read_text())
    assert manifest["shared"] == {"k.low_rank.down": "q.low_rank.down"}


def test_the_report_names_the_branch() -> None:
    layer = branched(nn.Linear(8, 6), LowRank(half(2, 8), half(6, 2), rounded=False))
    assert layer.report("x").transform == "scale+lowrank-2"


@pytest.mark.parametrize(
    ("width", "group", "fits"),
    [(3072, 128, 128), (8960, 64, 64), (32, 128, 32), (48, 32, 24), (7, 4, 1), (64, 0, 0)],
)
def test_a_group_fits_the_width(width: int, group: int, fits: int) -> None:
    assert fitting_group(width, group) == fits
