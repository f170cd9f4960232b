"""Q-VDiT's formulas against loops written from the paper, and what its training leaves behind."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from harness.bits import BitSpec
from harness.errors import UsageError
from harness.method import QuantContext, QuantReport, resolve_options
from harness.models.block_input import Sample
from harness.models.families import family_by_name
from harness.models.trajectories import CalibrationPool, record_pool
from harness.quant.layers.linear import QuantLinear
from harness.testing.conformance import PROMPTS, TINY_GEN, make_bench, tiny_pipeline
from methods.qvdit.budget import paper_iterations
from methods.qvdit.gain import initial_gain
from methods.qvdit.method import QVDiT, QVDiTOptions, temporal_loss

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FAMILY = family_by_name("cogvideox")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, CalibrationPool]:
    pipeline, folder = tiny_pipeline(), tmp_path_factory.mktemp("pool")
    pool = record_pool(
        pipeline, PROMPTS, TINY_GEN, seed=0, folder=folder, progress=lambda done, text: None
    )
    return pipeline.transformer, pool


def quantized(
    bench: tuple[nn.Module, CalibrationPool], bits: str = "w4a4", **options: Any
) -> tuple[nn.Module, QuantReport]:
    transformer = copy.deepcopy(bench[0])
    usual = {"samples": 6, "timesteps": 3, "iterations": 8, "batch": 1, "checkpointing": False}
    ctx = QuantContext(
        bits=BitSpec.parse(bits), options=QVDiTOptions(**{**usual, **options}), family=FAMILY,
        device=torch.device("cpu"), pool=bench[1],
    )  # fmt: skip
    return transformer, QVDiT().quantize_(transformer, ctx)


def output(bench: tuple[nn.Module, CalibrationPool], transformer: nn.Module) -> Tensor:
    with torch.no_grad():
        out: Tensor = transformer(**bench[1].call(Sample(1, 2)).arguments)[0]
    return out


def naive_softmax(values: Sequence[float]) -> list[float]:
    total = sum(math.exp(v) for v in values)
    return [math.exp(v) / total for v in values]


def naive_cosine(a: Sequence[float], b: Sequence[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def naive_tmd(quantized: list[list[float]], exact: list[list[float]]) -> float:
    """Sum over frames i of KL(softmax_j rho(S_i, S_j) in full precision || the same quantized)."""
    total = 0.0
    for i in range(len(exact)):
        p = naive_softmax([naive_cosine(exact[i], other) for other in exact])
        q = naive_softmax([naive_cosine(quantized[i], other) for other in quantized])
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return total


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), frames=st.integers(1, 5), features=st.integers(2, 7))
def test_tmd_is_the_divergence_of_frame_similarities(seed: int, frames: int, features: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, frames, features)
    exact = torch.randn(shape, generator=generator, dtype=torch.float64)
    rounded = exact + 0.5 * torch.randn(shape, generator=generator, dtype=torch.float64)
    expected = [naive_tmd(q, e) for q, e in zip(rounded.tolist(), exact.tolist(), strict=True)]
    assert float(temporal_loss(rounded, exact)) == pytest.approx(sum(expected) / 2, abs=1e-9)
    assert float(temporal_loss(exact, exact)) == pytest.approx(0, abs=1e-12)


def test_tmd_of_channel_slices_is_another_number() -> None:
    """A reshape of [b, c, t, h, w] without a permute compares slices of channels, not frames."""
    generator = torch.Generator().manual_seed(0)
    channels, frames = 4, 2
    # both frames hold the same picture, channels differ: frames agree, slices of channels do not
    picture = torch.randn(1, channels, 1, 3, 3, generator=generator, dtype=torch.float64)
    exact = picture.expand(1, channels, frames, 3, 3)
    blur = torch.randn(1, channels, frames, 3, 3, generator=generator, dtype=torch.float64)
    rounded = exact + 0.4 * blur

    def permuted(x: Tensor) -> Tensor:
        return torch.stack([x[:, :, i].reshape(1, -1) for i in range(frames)], 1)

    right = naive_tmd(permuted(rounded)[0].tolist(), permuted(exact)[0].tolist())
    wrong = float(temporal_loss(rounded.reshape(1, frames, -1), exact.reshape(1, frames, -1)))
    assert float(temporal_loss(permuted(rounded), permuted(exact))) == pytest.approx(right)
    assert wrong != pytest.approx(right, rel=0.05)


def test_a_denoiser_output_is_cut_into_its_frames(
    bench: tuple[nn.Module, CalibrationPool],
) -> None:
    out = output(bench, bench[0])  # [branches, frames, channels, height, width]
    cut = FAMILY.frames(bench[0], out, {})
    for branch in range(out.shape[0]):
        for frame in range(out.shape[1]):
            assert cut[branch, frame].tolist() == out[branch, frame].flatten().tolist()


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), frames=st.integers(1, 5), values=st.integers(2, 9))
def test_the_gain_starts_at_eta_over_omega(seed: int, frames: int, values: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, frames, values, generator=generator, dtype=torch.float64)
    rounded = (x * 2).round() / 2 + 0.01  # never a frame of zeros
    rows, coarse = x[0].tolist(), rounded[0].tolist()
    eta = naive_softmax([1 - naive_cosine(a, b) for a, b in zip(rows, coarse, strict=True)])
    mass = [sum(abs(v) for v in row) for row in rows]
    expected = [e / (m / sum(mass)) for e, m in zip(eta, mass, strict=True)]
    assert initial_gain(x, rounded)[0].tolist() == pytest.approx(expected)


def test_a_frame_that_rounding_turns_more_starts_with_more_gain() -> None:
    x = torch.tensor([[[1.0, 1.0], [1.0, 1.0]]])
    rounded = torch.tensor([[[1.0, 1.0], [1.0, 0.0]]])
    kept, turned = initial_gain(x, rounded)[0].tolist()
    assert turned > kept
    assert initial_gain(x, x)[0].tolist() == pytest.approx([1.0, 1.0])


def test_the_stored_layer_adds_the_estimate_of_the_papers_formula(
    bench: tuple[nn.Module, CalibrationPool],
) -> None:
    transformer, _ = quantized(bench, iterations=40, stretch=True)
    layer = transformer.get_submodule("transformer_blocks.0.attn1.to_q")
    assert isinstance(layer, QuantLinear)
    branch = layer.low_rank
    assert branch is not None
    assert branch.gain is not None
    text, frames, width = 8, 3, layer.in_features
    assert (branch.text_tokens, branch.gain.numel(), branch.rank) == (text, frames, 1)
    assert bool((branch.up != 0).any())
    x = torch.randn(1, text + frames * 2, width, generator=torch.Generator().manual_seed(1))
    got = layer(x)[0]
    low, high = x.amin(-1).clamp_max(0), x.amax(-1).clamp_min(0)
    weight = layer.dequantized()
    bias = torch.zeros(layer.out_features) if layer.bias is None else layer.bias
    for token in range(x.shape[1]):
        step = float(high[0, token] - low[0, token]) / 15
        zero = round(-float(low[0, token]) / step)
        codes = ((x[0, token] / step).round() + zero).clamp(0, 15)
        q = (codes - zero) * step
        gain = 1.0 if token < text else float(branch.gain[(token - text) // 2])
        estimate = float((gain * q) @ branch.down[0]) * branch.up[:, 0]
        torch.testing.assert_close(got[token], weight @ q + bias + estimate, rtol=1e-3, atol=1e-4)


def test_beta_starts_at_zero_and_the_gain_at_its_formula(
    bench: tuple[nn.Module, CalibrationPool],
) -> None:
    transformer, report = quantized(bench, iterations=0)
    plain, _ = quantized(bench, iterations=0, estimator=False)
    layers = {n: m for n, m in transformer.named_modules() if isinstance(m, QuantLinear)}
    for name, layer in layers.items():
        if ".norm" in name:
            assert layer.low_rank is None, name
            continue
        assert layer.low_rank is not None
        assert not bool(layer.low_rank.up.any())
        bound = layer.in_features**-0.5
        assert 0.3 * bound < float(layer.low_rank.down.std()) < bound
        assert layer.low_rank.gain is not None
        assert float(layer.low_rank.gain.mean()) == pytest.approx(1, abs=0.2)
        assert layer.low_rank.gain.unique().numel() > 1
    assert torch.equal(output(bench, transformer), output(bench, plain))
    assert report.notes == ("trained for 0 iterations of 1, 10000 of 4 in the paper",)
    # outputs and gains of 6 samples, one call for the layout of frames
    assert report.calibration_forwards == bench[1].forwards + 2 * 6 + 1


def test_training_lowers_both_terms(bench: tuple[nn.Module, CalibrationPool]) -> None:
    _, report = quantized(bench, iterations=60, stretch=True)
    for name in ("loss_output", "loss_temporal"):
        curve = report.curves[name]
        assert len(curve) == 60
        assert sum(curve[-12:]) < sum(curve[:12]), name
    _, plain = quantized(bench, gamma=0)
    assert set(plain.curves) == {"loss_output"}


@pytest.mark.parametrize(
    "options",
    [
        {"estimator": False},
        {"gain": False},
        {"inner_rank": 4},
        {"train_activations": False},
        {"gamma": 0.0},
        {"branches": "both"},
        {"stretch": True},
        {"grid_points": 4},
        {"modulation": "fp"},
        {"batch": 2},
    ],
    ids=str,
)
def test_every_option_changes_the_result_and_stays_finite(
    bench: tuple[nn.Module, CalibrationPool], options: dict[str, Any]
) -> None:
    rates = {"lr_step": 1e-4, "lr_estimator": 1e-3}
    varied, report = quantized(bench, **rates, **options)
    usual, _ = quantized(bench, **rates)
    out = output(bench, varied)
    assert bool(torch.isfinite(out).all())
    assert not torch.equal(out, output(bench, usual))
    assert len(report.layers) == (12 if "modulation" in options else 16)


def test_checkpointing_changes_no_result(bench: tuple[nn.Module, CalibrationPool]) -> None:
    kept, _ = quantized(bench, iterations=3, stretch=True)
    again, _ = quantized(bench, iterations=3, stretch=True, checkpointing=True)
    assert torch.equal(output(bench, kept), output(bench, again))


def test_the_releases_eight_bit_feed_forward_is_said_to_be_mixed(
    bench: tuple[nn.Module, CalibrationPool],
) -> None:
    _, report = quantized(bench, iterations=0, ff_bits=8)
    widths = {layer.name: (layer.w_bits, layer.a_bits) for layer in report.layers}
    for name, width in widths.items():
        nominal = (4, 16) if ".norm" in name else (4, 4)
        assert width == ((8, 8) if ".ff." in name else nominal), name
    assert "feed-forward" in report.mixed
    assert quantized(bench, iterations=0)[1].mixed == ""
    assert quantized(bench, "w8a8", iterations=0, ff_bits=8)[1].mixed == ""


def test_in_a_block_that_fuses_them_what_holds_the_feed_forward_is_raised(tmp_path: Path) -> None:
    other = make_bench("hunyuanvideo", tmp_path)
    _, _, report = other.quantize(
        QVDiT(), {"samples": 2, "iterations": 0, "ff_bits": 8}, "w4a4", "raised"
    )
    raised = {entry.name for entry in report.layers if entry.w_bits == 8}
    dual = {
        f"transformer_blocks.0.{part}.net.{i}"
        for part in ("ff", "ff_context")
        for i in ("0.proj", "2")
    }
    single = {f"single_transformer_blocks.0.{name}" for name in ("proj_mlp", "proj_out")}
    assert raised == dual | single


def test_at_sixteen_bits_nothing_is_learned_and_nothing_changes(
    bench: tuple[nn.Module, CalibrationPool],
) -> None:
    transformer, report = quantized(bench, "w16a16", inner_rank=4)
    assert torch.equal(output(bench, transformer), output(bench, bench[0]))
    assert report.curves == {}
    assert all(m.low_rank is None for m in transformer.modules() if isinstance(m, QuantLinear))


def test_the_iterations_of_the_paper_go_by_width() -> None:
    assert [paper_iterations(w) for w in (3, 4, 6, 8)] == [15_000, 10_000, 5_000, 5_000]


def test_a_short_training_stretches_its_rates_by_the_iterations_it_lacks(
    bench: tuple[nn.Module, CalibrationPool],
) -> None:
    stretched, report = quantized(bench, iterations=8, stretch=True)
    raised, _ = quantized(bench, iterations=8, lr_step=1e-6 * 1250, lr_estimator=1e-5 * 1250)
    assert torch.equal(output(bench, stretched), output(bench, raised))
    assert report.notes == (
        "trained for 8 iterations of 1 at 1250 x its rates, 10000 of 4 in the paper",
    )


@pytest.mark.parametrize(
    "options",
    [{"iterations": -2}, {"batch": 0}, {"ff_bits": 16}, {"branches": "one"}, {"gamma": -1}],
)
def test_what_cannot_be_meant_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        resolve_options(QVDiT(), options)


def test_the_quick_budget_is_one_that_the_method_takes() -> None:
    chosen = resolve_options(QVDiT(), QVDiT.quick)
    assert (chosen.iterations, chosen.batch, chosen.stretch) == (200, 1, True)
    assert not chosen.checkpointing
