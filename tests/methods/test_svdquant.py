"""SVDQuant's smoothing, branch and layer against references written from the paper, in float64."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, nn

from harness.artifact.quantize import branch_bits, quantize
from harness.bits import BitSpec
from harness.errors import UsageError
from harness.method import QuantContext, resolve_options
from harness.models.families import family_by_name
from harness.models.trajectories import record_pool
from harness.quant import (
    Hessian,
    InputSummary,
    LowRank,
    QuantLinear,
    WeightSpec,
    quantize_activation,
    replace_module_,
    smoothing_scale,
    storable,
)
from harness.testing.conformance import PROMPTS, TINY_GEN, tiny_pipeline
from methods.svdquant import branch
from methods.svdquant.branch import fitting_rank, truncated_svd
from methods.svdquant.method import SVDQuant, SVDQuantOptions
from methods.svdquant.shared_fit import SharedFit, round_to_nearest, smoothing_pairs

if TYPE_CHECKING:
    from pathlib import Path

WIDTH = 32


def smoothing_factor(activation: Tensor, weight: Tensor, alpha: float, beta: float) -> Tensor:
    return storable(smoothing_scale(activation, weight, alpha, beta))


def make_block(seed: int = 0) -> nn.Module:
    """Two linears whose weights have a few strong directions."""
    generator = torch.Generator().manual_seed(seed)
    block = nn.Module()
    for name, out in (("q", 24), ("k", 40)):
        linear = nn.Linear(WIDTH, out)
        strong = torch.randn(out, 3, generator=generator) @ torch.randn(
            3, WIDTH, generator=generator
        )
        linear.weight.data = strong + 0.3 * torch.randn(out, WIDTH, generator=generator)
        block.add_module(name, linear)
    return block


def make_tokens(seed: int = 1, count: int = 48) -> Tensor:
    """Inputs with two channels of outliers."""
    x = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))
    x[:, 3] *= 30
    x[:, 17] *= 12
    return x


def make_fit(block: nn.Module, x: Tensor, bits: str = "w4a4", **options: Any) -> SharedFit:
    context = QuantContext(
        bits=BitSpec.parse(bits), options=SVDQuantOptions(**{"group": 8, "rank": 4} | options),
        family=family_by_name("cogvideox"), device=torch.device("cpu"),
    )  # fmt: skip
    hessian = Hessian(x.shape[1]) if context.options.rounding == "gptq" else None
    zeros = torch.zeros(x.shape[1])
    summary = InputSummary(peak=zeros, total=zeros, parts=[], hessian=hessian)
    summary.add(x, x.shape[0], torch.Generator().manual_seed(0))
    return SharedFit(block, ("q", "k"), summary, context)


def replace_(block: nn.Module, fit: SharedFit) -> dict[str, float | None]:
    """Smooth, branch and round as the method does; errors by linear."""
    scale = fit.search_smoothing()
    found = fit.round_residual(block, scale, fit.fit_branch(scale))
    for rounded in found:
        replace_module_(block, rounded.name, rounded.layer)
    return {rounded.name: rounded.error for rounded in found}


def naive_round(matrix: np.ndarray, bits: int, group: int) -> np.ndarray:
    """Symmetric absmax rounding of the channel groups of every row; steps in half precision."""
    top = 2 ** (bits - 1) - 1
    out = np.zeros_like(matrix)
    for i, row in enumerate(matrix):
        for g in range(0, len(row), group):
            values = row[g : g + group]
            step = float(np.float16(max(np.abs(values).max() / top, 1e-8)))
            for j, v in enumerate(values):
                out[i, g + j] = max(-top - 1, min(top, round(v / step))) * step
    return out


def naive_branch(matrix: np.ndarray, rank: int) -> np.ndarray:
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


def stacked(block: nn.Module) -> Tensor:
    return torch.cat([block.get_submodule(n).get_parameter("weight") for n in "qk"]).detach()


def test_the_search_tries_thirty_nine_pairs() -> None:
    pairs = smoothing_pairs(20)
    assert len(pairs) == 39
    assert len(set(pairs)) == 39
    for alpha, beta in pairs:
        assert beta in (0.0, pytest.approx(1 - alpha)) or (alpha, beta) == (0.0, 0.0)
    assert {alpha for alpha, _ in pairs} == {k / 20 for k in range(20)}


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), pair=st.sampled_from(smoothing_pairs(20)))
def test_a_factor_is_activation_to_the_alpha_over_weight_to_the_beta(
    seed: int, pair: tuple[float, float]
) -> None:
    draw = torch.Generator().manual_seed(seed)
    activation = torch.rand(9, generator=draw) * 20 + 0.05
    weight = torch.rand(9, generator=draw) * 2 + 0.05
    found = smoothing_factor(activation, weight, *pair).tolist()
    alpha, beta = pair
    expected = [
        x**alpha / w**beta for x, w in zip(activation.tolist(), weight.tolist(), strict=True)
    ]
    assert found == pytest.approx(expected, rel=1e-3)


def test_a_channel_without_weight_or_activation_is_left_alone() -> None:
    factor = smoothing_factor(torch.tensor([0.0, 4.0]), torch.tensor([1.0, 0.0]), 0.5, 0.5)
    assert factor.tolist() == [1.0, 1.0]


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10_000), out=st.integers(3, 20), width=st.integers(3, 20),
    rank=st.integers(1, 3),
)  # fmt: skip
def test_the_branch_is_the_truncated_singular_value_decomposition(
    seed: int, out: int, width: int, rank: int
) -> None:
    matrix = torch.randn(out, width, generator=torch.Generator().manual_seed(seed))
    found = truncated_svd(matrix, rank)
    assert (found.up.shape, found.down.shape) == ((out, rank), (rank, width))
    for factor in found:
        assert torch.equal(factor.half().float(), factor)
    exact = matrix.double().numpy()
    left = float(((exact - found.product.double().numpy()) ** 2).sum())
    least = float(((exact - naive_branch(exact, rank)) ** 2).sum())
    assert left <= least * (1 + 1e-5) + 1e-4


def test_a_matrix_of_lower_rank_than_the_branch_is_all_branch() -> None:
    draw = torch.Generator().manual_seed(0)
    matrix = torch.randn(12, 2, generator=draw) @ torch.randn(2, 9, generator=draw)
    torch.testing.assert_close(truncated_svd(matrix, 4).product, matrix, atol=1e-2, rtol=1e-2)
    assert bool((truncated_svd(torch.zeros(5, 4), 2).product == 0).all())


def test_a_matrix_beyond_half_precision_has_a_finite_branch() -> None:
    matrix = torch.randn(6, 6, generator=torch.Generator().manual_seed(0)) * 1e11
    product = truncated_svd(matrix, 6).product
    torch.testing.assert_close(product, matrix, atol=2e9, rtol=0.05)


def test_rounding_to_nearest_is_that_of_the_loops() -> None:
    matrix = torch.randn(5, 16, generator=torch.Generator().manual_seed(3))
    found = round_to_nearest(matrix, WeightSpec(bits=4, group=8))
    expected = naive_round(matrix.double().numpy(), 4, 8)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_the_branch_is_refitted_to_what_the_rounding_lost_until_it_gains_nothing() -> None:
    block, x = make_block(), make_tokens()
    fit = make_fit(block, x)
    scale = smoothing_factor(x.abs().amax(0), stacked(block).abs().amax(0), 0.5, 0.5)
    z = (x / scale).double().numpy()
    weight = (stacked(block) * scale).double().numpy()
    exact = z @ weight.T
    rounded = naive_round(z, 4, 8)

    def error(low: np.ndarray) -> float:
        rest = naive_round(weight - low, 4, 8)
        return float(((z @ low.T + rounded @ rest.T - exact) ** 2).sum())

    best = naive_branch(weight, 4)
    errors = [error(best)]
    for _ in range(100):
        best = naive_branch(weight - naive_round(weight - best, 4, 8), 4)
        errors.append(error(best))
        if errors[-1] >= min(errors[:-1]):
            break
    found = fit.error(scale, fit.fit_branch(scale))
    first = fit.error(scale, fit.branch(fit.stacked * scale))
    assert first == pytest.approx(errors[0], rel=0.02)
    assert found <= first
    # both stop where a step gains nothing, and a code that flips by the last bit moves that place
    assert found == pytest.approx(min(errors), rel=0.1)


def test_the_search_keeps_the_pair_with_the_smallest_output_error() -> None:
    block, x = make_block(), make_tokens()
    fit = make_fit(block, x, points=5)
    chosen = fit.error(*with_branch(fit, fit.search_smoothing()))
    weight = stacked(block).abs().amax(0)
    tried = [
        fit.error(*with_branch(fit, smoothing_factor(x.abs().amax(0), weight, *pair)))
        for pair in smoothing_pairs(5)
    ]
    assert chosen == min(tried)
    assert chosen < 0.8 * tried[0]  # (0, 0) smooths nothing


def with_branch(fit: SharedFit, scale: Tensor) -> tuple[Tensor, Any]:
    return scale, fit.branch(fit.stacked * scale)


@pytest.mark.parametrize("rounding", ["gptq", "rtn"])
def test_a_layer_is_branch_plus_rounded_rest_and_linears_share_the_down_projection(
    rounding: str,
) -> None:
    block, x = make_block(), make_tokens()
    bias = {n: block.get_submodule(n).get_parameter("bias").detach().clone() for n in "qk"}
    weight = {n: block.get_submodule(n).get_parameter("weight").detach().clone() for n in "qk"}
    replace_(block, make_fit(block, x, points=4, rounding=rounding))
    layers = {name: block.get_submodule(name) for name in "qk"}
    for name, layer in layers.items():
        assert isinstance(layer, QuantLinear)
        assert isinstance(layer.low_rank, LowRank)
        scale = layer.get_submodule("transforms.0").get_buffer("scale").double()
        z = (x.double() / scale).numpy()
        down, up = layer.low_rank.down.double().numpy(), layer.low_rank.up.double().numpy()
        rest = layer.dequantized().double().numpy()
        rounded = quantize_activation(x / scale.float(), layer.activation_spec).double().numpy()
        expected = z @ down.T @ up.T + rounded @ rest.T + bias[name].double().numpy()
        np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=1e-3, atol=1e-2)
        exact = (x @ weight[name].T + bias[name]).numpy()
        wrong = ((expected - exact) ** 2).sum() / (exact**2).sum()
        assert wrong < 0.05
        assert np.abs(rounded).max() > 0
    held = {layer.get_buffer("low_rank.down").data_ptr() for layer in layers.values()}
    assert len(held) == 1


def test_the_branch_takes_what_rounding_alone_would_lose() -> None:
    wrong = {}
    for rank in (0, 4):
        fit = make_fit(make_block(), make_tokens(), rank=rank, smoothing=False)
        scale = torch.ones(WIDTH)
        wrong[rank] = fit.error(scale, fit.fit_branch(scale))
    assert wrong[4] < 0.7 * wrong[0]


def test_gptq_on_the_residual_beats_rounding_it_to_nearest_on_these_inputs() -> None:
    x = make_tokens(count=400) @ torch.randn(
        WIDTH, WIDTH, generator=torch.Generator().manual_seed(5)
    )
    wrong = {}
    for rounding in ("gptq", "rtn"):
        block = make_block()
        exact = x @ stacked(block).T
        replace_(block, make_fit(block, x, "w3a16", points=4, rounding=rounding))
        found = torch.cat([block.get_submodule(n)(x) for n in "qk"], 1)
        bias = torch.cat([block.get_submodule(n).get_buffer("bias") for n in "qk"])
        wrong[rounding] = float((found - bias - exact).square().sum())
    assert wrong["gptq"] < wrong["rtn"]


def test_a_measured_error_is_that_of_the_rounded_weight_on_the_inputs() -> None:
    block, x = make_block(), make_tokens()
    weight = block.get_submodule("q").get_parameter("weight").detach().double()
    errors = replace_(block, make_fit(block, x, "w4a16", points=3))
    layer = block.get_submodule("q")
    found = layer(x).double() - layer.get_buffer("bias").double()
    exact = x.double() @ weight.T
    expected = float((found - exact).square().sum() / exact.square().sum())
    assert errors["q"] == pytest.approx(expected, rel=0.02)


def test_real_widths_keep_rank_32_and_miniatures_a_quarter() -> None:
    for width in (1152, 1536, 1920, 3072, 5120, 13824):
        assert fitting_rank(width, 4 * width, 32) == 32
    assert fitting_rank(32, 128, 32) == 8
    assert fitting_rank(3, 3, 32) == 1
    assert fitting_rank(64, 64, 0) == 0


@pytest.mark.parametrize(
    "bad", [{"rank": -1}, {"points": 1}, {"rounding": "nearest"}, {"tokens": 0}, {"group": 0}]
)
def test_options_that_cannot_be_meant_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        resolve_options(SVDQuant(), bad)


def test_a_projection_is_stored_once_and_the_branch_counts_in_the_average_width(
    tmp_path: Path,
) -> None:
    pipeline = tiny_pipeline()
    (tmp_path / "pool").mkdir()
    record_pool(
        pipeline, PROMPTS[:1], TINY_GEN, seed=0, folder=tmp_path / "pool",
        progress=lambda fraction, text: None,
    )  # fmt: skip
    footprints = []
    for rank in (32, 0):
        pipeline, out = tiny_pipeline(), tmp_path / f"rank-{rank}"
        out.mkdir()
        report = quantize(
            pipeline, SVDQuant(), bits=BitSpec.parse("w4a4"), seed=0, family="cogvideox",
            options={"samples": 2, "timesteps": 2, "points": 2, "iterations": 2, "rank": rank},
            gen=TINY_GEN, pool=tmp_path / "pool", out=out, progress=lambda fraction, text: None,
        )  # fmt: skip
        footprints.append(json.loads((out / "report.json").read_text())["footprint"])
        if rank:
            with safe_open(out / "weights.safetensors", framework="pt") as file:
                downs = [k for k in file.keys() if k.endswith("low_rank.down")]  # noqa: SIM118
            # attn_in, attn_out, ff_in, ff_out in each of two blocks
            assert len(downs) == 8
            labels = {layer.transform.split("+")[-1] for layer in report.layers}
            assert labels == {"lowrank-8", "none"}
            assert any("rank 8 at width 32" in note for note in report.notes)
            bits = branch_bits(pipeline.transformer)
    branched, plain = footprints
    # down 8 x in once an input and up out x 8 for each linear, in 16 bits: 32 and 128 wide
    a_block = 16 * 8 * ((32 + 3 * 32) + (32 + 32) + (32 + 128) + (128 + 32))
    assert bits == 2 * a_block
    difference = branched["avg_w_bits"] - plain["avg_w_bits"]
    assert difference == pytest.approx(bits / branched["total_parameters"])
    assert branched["artifact_bytes"] > plain["artifact_bytes"]


def wide_block(width: int = 256) -> nn.Module:
    """Weights with a slowly falling spectrum and a few channels of outliers, as trained ones."""
    generator = torch.Generator().manual_seed(3)
    block = nn.Module()
    for name, out in (("q", width), ("k", width)):
        linear = nn.Linear(width, out)
        sizes = 1 / torch.arange(1, width + 1).float().sqrt()
        left, right = (
            torch.linalg.qr(torch.randn(n, width, generator=generator)).Q for n in (out, width)
        )
        linear.weight.data = left * sizes @ right.T
        linear.weight.data[:, torch.randperm(width, generator=generator)[:6]] *= 6
        block.add_module(name, linear)
    return block


def wide_tokens(width: int = 256, count: int = 96) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(count, width, generator=generator)
    x[:, torch.randperm(width, generator=generator)[:8]] *= 20
    return x


def test_subspace_iteration_chooses_the_smoothing_that_the_full_decomposition_chooses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    block, x = wide_block(), wide_tokens()
    found = []
    for side in (10_000, 0):  # decomposed in full, by iteration
        monkeypatch.setattr(branch, "EXACT_SIDE", side)
        fit = make_fit(block, x, group=64, rank=16, points=10, iterations=4, rounding="rtn")
        scale = fit.search_smoothing()
        fitted = fit.fit_branch(scale)
        found.append((scale, fit.error(scale, fitted)))
    (exact_scale, exact_error), (scale, error) = found
    assert torch.equal(scale, exact_scale)
    assert error == pytest.approx(exact_error, rel=0.01)


def test_subspace_iteration_leaves_hardly_more_than_the_best_rank_and_is_reproducible(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(branch, "EXACT_SIDE", 0)
    matrix = torch.cat([linear.weight.detach() for linear in wide_block().children()])
    first, again = branch.LeadingDirections(), branch.LeadingDirections()
    for turn in range(3):
        scaled = matrix * (1 + 0.1 * turn * torch.linspace(-1, 1, matrix.shape[1]))
        factors = first.truncated_svd(scaled, 16)
        assert torch.equal(factors.product, again.truncated_svd(scaled, 16).product)
        rest = (scaled - factors.product).square().sum()
        best = (scaled - truncated_svd(scaled, 16).product).square().sum()
        assert float(best) * (1 - 1e-4) <= float(rest) <= 1.002 * float(best)


def test_wide_weights_are_never_decomposed_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("a full decomposition")

    monkeypatch.setattr(branch, "truncated_svd", refuse)
    wide = torch.randn(520, 516, generator=torch.Generator().manual_seed(0))
    assert branch.LeadingDirections().truncated_svd(wide, 4).up.shape == (520, 4)
    with pytest.raises(AssertionError, match="full"):
        branch.LeadingDirections().truncated_svd(wide[:512], 4)
