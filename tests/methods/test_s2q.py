"""S2Q-VDiT: learned parts, folding, options."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from harness.bits import BitSpec
from harness.errors import HarnessError
from harness.method import QuantContext, QuantReport
from harness.models.block_input import BlockInput, Sample
from harness.models.families import family_by_name
from harness.models.trajectories import CalibrationPool, DenoiserCall, record_pool
from harness.quant.layers.linear import QuantLinear, quantize_linear
from harness.quant.learning.block_trainer import BlockTask, reconstruction_loss, train_block
from harness.quant.learning.learned import LearnedInput, LearnedLinear
from harness.quant.learning.learned_blocks import initial_scale
from harness.testing.conformance import PROMPTS, TINY_GEN, tiny_pipeline
from methods.s2q.method import S2Q, S2QOptions
from tests.blocks import first_block_inputs, run_block_over, split_branches

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FAMILY = family_by_name("cogvideox")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[nn.Module, CalibrationPool]]:
    folder = tmp_path_factory.mktemp("pool")
    pipeline = tiny_pipeline()
    pool = record_pool(
        pipeline, PROMPTS, TINY_GEN, seed=0, folder=folder, progress=lambda done, text: None
    )
    yield pipeline.transformer, pool


def quantized(
    bench: tuple[nn.Module, CalibrationPool], bits: str = "w4a4", figures: Path | None = None,
    **options: object,
) -> tuple[nn.Module, QuantReport]:  # fmt: skip
    transformer = copy.deepcopy(bench[0])
    ctx = QuantContext(
        bits=BitSpec.parse(bits), options=S2QOptions(**{"samples": 4, "epochs": 2, **options}),
        family=FAMILY, device=torch.device("cpu"), pool=bench[1], figures=figures,
    )  # fmt: skip
    return transformer, S2Q().quantize_(transformer, ctx)


def output(transformer: nn.Module, pool: CalibrationPool) -> torch.Tensor:
    with torch.no_grad():
        return transformer(**pool.call(Sample(1, 2)).arguments)[0]


def test_the_trained_form_and_the_stored_form_compute_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(24, 10)
    shared = LearnedInput(
        24, 4, scale=torch.rand(24) + 0.5, rotation="random", clip=True, generator=generator
    )
    with torch.no_grad():
        for parameter in shared.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    learned = LearnedLinear(linear, shared, 4, clip=True)
    x = torch.randn(7, 24, generator=generator)
    from harness.quant.layers.activation import ActivationSpec
    from harness.quant.layers.linear import WeightSpec
    from harness.quant.layers.transform import ChannelScale

    low, high = shared.clip_factors()
    kronecker, scale = shared.kronecker(), shared.scale()
    assert kronecker is not None
    assert scale is not None
    stored = quantize_linear(
        linear, WeightSpec(bits=4), ActivationSpec(bits=4, clip_low=low, clip_high=high),
        transforms=[ChannelScale(scale), kronecker],
        clip=learned.clip_factors()[1], clip_low=learned.clip_factors()[0],
    )  # fmt: skip
    # the stored factors and steps are in half precision: a few values may cross a rounding boundary
    error = (stored(x) - learned(x)).square().mean() / learned(x).square().mean()
    assert float(error.detach()) < 5e-3


def test_without_rounding_the_learned_transforms_cancel() -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    linear = nn.Linear(36, 5).double()
    shared = LearnedInput(
        36, 16, scale=torch.rand(36) + 0.5, rotation="hadamard", clip=True, generator=generator
    )
    with torch.no_grad():
        for parameter in shared.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    shared.double()
    learned = LearnedLinear(linear, shared, 16, clip=True)
    x = torch.randn(4, 36, generator=generator, dtype=torch.float64)
    # the orthogonal factors were drawn in single precision
    torch.testing.assert_close(learned(x), linear(x), rtol=1e-5, atol=1e-6)


def test_linears_that_share_a_tensor_share_the_work() -> None:
    shared = LearnedInput(
        8, 4, scale=None, rotation="identity", clip=True, generator=torch.Generator(), readers=4
    )
    x = torch.randn(3, 8)
    assert shared.activation(x) is shared.activation(x)
    assert shared.activation(x) is not shared.activation(x.clone())


def test_the_loss_is_the_weighted_mean_over_tokens_of_eq_10() -> None:
    out = {"video": torch.tensor([[[1.0, 2.0], [0.0, 0.0]]]), "text": torch.tensor([[[3.0, 0.0]]])}
    target = {name: torch.zeros_like(value) for name, value in out.items()}
    weights = {"video": torch.tensor([[0.5, 1.0]]), "text": torch.tensor([[1.0]])}
    assert float(reconstruction_loss(out, target, None)) == pytest.approx((5 + 0 + 9) / 3)
    assert float(reconstruction_loss(out, target, weights)) == pytest.approx((2.5 + 0 + 9) / 3)


def test_the_initial_scale_is_smoothquants() -> None:
    linears = [nn.Linear(2, 3, bias=False), nn.Linear(2, 1, bias=False)]
    linears[0].weight.data = torch.tensor([[1.0, -4.0], [0.5, 2.0], [0.0, 0.0]])
    linears[1].weight.data = torch.tensor([[-2.0, 1.0]])
    scale = initial_scale(torch.tensor([8.0, 1.0]), linears, 0.5)
    assert scale.tolist() == pytest.approx([(8 / 2) ** 0.5, (1 / 4) ** 0.5])


def test_training_lowers_the_loss_and_the_error(bench: tuple[nn.Module, CalibrationPool]) -> None:
    exact = output(*bench)

    def error(transformer: nn.Module) -> float:
        return float((output(transformer, bench[1]) - exact).square().sum() / exact.square().sum())

    trained, report = quantized(bench, samples=12, epochs=10)
    fixed, _ = quantized(bench, samples=12, learn=False)
    for name, curve in report.curves.items():
        if name.startswith("loss_block"):
            assert len(curve) == 120
            assert sum(curve[-12:]) < sum(curve[:12])
    assert error(trained) < error(fixed)


def test_scales_are_folded_where_a_producer_exists(
    bench: tuple[nn.Module, CalibrationPool],
) -> None:
    transformer, _ = quantized(bench)
    block = transformer.transformer_blocks[0]
    kinds = {
        name: [t.kind for t in block.get_submodule(name).transforms]
        for name in ("attn1.to_q", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2", "norm1.linear")
    }
    assert kinds == {
        "attn1.to_q": ["kronecker"], "attn1.to_out.0": ["kronecker"],
        "ff.net.0.proj": ["kronecker"], "ff.net.2": ["scale", "kronecker"], "norm1.linear": [],
    }  # fmt: skip


def test_the_figures_and_curves_of_the_paper_are_left_behind(
    bench: tuple[nn.Module, CalibrationPool], tmp_path: Path
) -> None:
    _, report = quantized(bench, figures=tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"chosen_timesteps.png", "token_mass.png"}
    assert len(report.curves["chosen_steps"]) == 4
    mass = report.curves["token_mass_block_0"]
    assert mass == sorted(mass, reverse=True)


@pytest.mark.parametrize(
    "options",
    [
        {"selection": "rtfp"},
        {"token_weights": False},
        {"text_tokens": "video"},
        {"rounding": "rtn"},
        {"rotation": "none"},
        {"rotation": "random", "scale": False},
        {"branches": "both"},
        {"inputs": "quantized"},
        {"modulation": "fp"},
        {"norm": "spectral"},
        {"lambda_min": 0.0},
    ],
    ids=str,
)
def test_every_ablation_changes_the_result_and_stays_finite(
    bench: tuple[nn.Module, CalibrationPool], options: dict[str, object]
) -> None:
    varied, report = quantized(bench, **options)
    usual, _ = quantized(bench)
    out = output(varied, bench[1])
    assert bool(torch.isfinite(out).all())
    if options != {"norm": "spectral"}:  # it may choose the same samples
        assert not torch.equal(out, output(usual, bench[1]))
    layers = [m for m in varied.modules() if isinstance(m, QuantLinear)]
    assert len(layers) == len(report.layers) == (12 if "modulation" in options else 16)


def test_branches_are_split_as_asked(bench: tuple[nn.Module, CalibrationPool]) -> None:
    inputs = first_block_inputs(bench[0], FAMILY, bench[1], [Sample(0, 0), Sample(0, 1)])
    assert [i.branches for i in split_branches(inputs, "both")] == [2, 2]
    conditional = split_branches(inputs, "cond")
    alternate = split_branches(inputs, "alternate")
    for name in FAMILY.streams:
        assert torch.equal(conditional[1].streams[name], inputs[1].streams[name][1:])
        assert torch.equal(alternate[0].streams[name], inputs[0].streams[name][1:])
        assert torch.equal(alternate[1].streams[name], inputs[1].streams[name][:1])
    with pytest.raises(ValueError, match="unknown branch rule"):
        split_branches(inputs, "uncond")


@pytest.mark.parametrize("steps", [(0, 1, 2, 3), (5,), (2, 7)])
def test_every_timestep_alternates_between_the_branches(steps: tuple[int, ...]) -> None:
    both = torch.tensor([[[0.0]], [[1.0]]])
    inputs = [
        BlockInput(sample=Sample(prompt, step), streams={"hidden_states": both})
        for prompt in range(4)
        for step in steps
    ]
    taken = split_branches(inputs, "alternate")
    for step in steps:
        branches = [float(t.streams["hidden_states"]) for t in taken if t.sample.step == step]
        assert sum(branches) == 2


def test_rules_that_find_fewer_samples_say_so(bench: tuple[nn.Module, CalibrationPool]) -> None:
    _, report = quantized(bench, samples=9, selection="atop", epochs=1)
    assert report.calibration_samples == 4
    assert report.notes == (
        "calibrated on 4 samples of 9 asked for: the pool has no more",
        "trained for 1 epochs a block, 15 in the paper",
    )
    # statistics, targets, masses, Hessians of 4 samples, and 9 steps of training
    assert report.calibration_forwards == bench[1].forwards + 4 * 4 + 9


def test_a_bfloat16_model_is_trained_in_single_precision_and_keeps_its_dtype(
    bench: tuple[nn.Module, CalibrationPool],
) -> None:
    from methods.ptq4dit.method import PTQ4DiT, PTQ4DiTOptions

    half = copy.deepcopy(bench[0]).to(torch.bfloat16)
    call = {
        k: v.to(torch.bfloat16) if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for k, v in bench[1].call(Sample(1, 2)).arguments.items()
    }

    class Pool(CalibrationPool):
        def call(self, sample: Sample, device: torch.device | None = None) -> DenoiserCall:
            found = CalibrationPool.call(self, sample, device)
            return DenoiserCall(
                arguments={
                    k: v.to(torch.bfloat16)
                    if isinstance(v, torch.Tensor) and v.is_floating_point()
                    else v
                    for k, v in found.arguments.items()
                },
                branches=found.branches,
            )

    pool = Pool.open(bench[1].folder)
    with torch.no_grad():
        exact = half(**call)[0].float()
    for method, options in (
        (S2Q(), S2QOptions(samples=4, epochs=1)),
        (PTQ4DiT(), PTQ4DiTOptions(samples=4, iterations=4, balance_ff_out=True)),
    ):
        for bits, allowed in (("w16a16", 3e-3), ("w8a8", 2e-2)):
            transformer = copy.deepcopy(half)
            ctx = QuantContext(
                bits=BitSpec.parse(bits), options=options, family=FAMILY,
                device=torch.device("cpu"), pool=pool,
            )  # fmt: skip
            method.quantize_(transformer, ctx)
            with torch.no_grad():
                out = transformer(**call)[0]
            assert out.dtype == torch.bfloat16
            error = (out.float() - exact).square().sum() / exact.square().sum()
            assert float(error) < allowed, (method.name, bits, float(error))


def test_the_parts_of_the_calibration_are_timed_and_its_progress_moves(
    bench: tuple[nn.Module, CalibrationPool],
) -> None:
    said: list[tuple[float, str]] = []
    ctx = QuantContext(
        bits=BitSpec.parse("w4a4"), options=S2QOptions(samples=4, epochs=2), family=FAMILY,
        device=torch.device("cpu"), pool=bench[1],
        progress=lambda share, text: said.append((share, text)),
    )  # fmt: skip
    S2Q().quantize_(copy.deepcopy(bench[0]), ctx)
    named = {"selection", "block outputs", "statistics", "token weights", "training", "rounding"}
    assert set(ctx.seconds) == named
    assert all(seconds > 0 for seconds in ctx.seconds.values())
    assert [share for share, _ in said] == sorted(share for share, _ in said)
    assert any("step 1/8" in text and "left" in text for _, text in said)


def test_a_group_may_keep_its_learning_rate(bench: tuple[nn.Module, CalibrationPool]) -> None:
    inputs = first_block_inputs(bench[0], FAMILY, bench[1], [Sample(0, 0)])
    _, block = FAMILY.blocks(bench[0])[0]
    trained = copy.deepcopy(block)
    parameters = [trained.norm1.linear.bias, trained.norm2.linear.bias]
    rates: list[list[float]] = []

    class Watched(torch.optim.SGD):
        def step(self, closure: None = None) -> None:  # type: ignore[override]
            rates.append([group["lr"] for group in self.param_groups])
            super().step(closure)

    for parameter in parameters:
        parameter.requires_grad_(True)
    train_block(
        trained, FAMILY, BlockTask(inputs=inputs, targets=run_block_over(block, FAMILY, inputs)),
        [{"params": parameters[:1], "lr": 0.1, "floor": 1.0},
         {"params": parameters[1:], "lr": 0.1}],
        optimizer=Watched, steps=4, generator=torch.Generator(),
    )  # fmt: skip
    assert [rate for rate, _ in rates] == pytest.approx([0.1] * 4)
    assert [rate for _, rate in rates] == sorted((rate for _, rate in rates), reverse=True)
    assert rates[-1][1] < 0.05


def test_a_diverging_block_is_an_error_and_not_a_row(
    bench: tuple[nn.Module, CalibrationPool],
) -> None:
    inputs = first_block_inputs(bench[0], FAMILY, bench[1], [Sample(0, 0)])
    _, block = FAMILY.blocks(bench[0])[0]
    targets = run_block_over(block, FAMILY, inputs)
    broken: list[BlockInput] = [
        t.with_streams({k: v * float("nan") for k, v in t.streams.items()}) for t in targets
    ]
    trained = copy.deepcopy(block).requires_grad_(True)
    with pytest.raises(HarnessError, match="diverged"):
        train_block(
            trained, FAMILY, BlockTask(inputs=inputs, targets=broken),
            [{"params": trained.parameters(), "lr": 1e-3}],
            optimizer=torch.optim.AdamW, steps=2, generator=torch.Generator(),
        )  # fmt: skip
