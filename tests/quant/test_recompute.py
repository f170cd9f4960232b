"""Training with recomputed activations: the same gradients, a quarter of the memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock
from torch import Tensor, nn

from harness.bits import BitSpec
from harness.measure.traced import PeakTensors
from harness.measure.training_memory import (
    cogvideox_input,
    training_memory,
    training_step,
)
from harness.method import QuantContext
from harness.models.families import family_by_name
from harness.quant.calibration.capture import run_block
from harness.quant.calibration.statistics import channel_absmax
from harness.quant.layers.grid import Affine, fake_quantize
from harness.quant.learning import recompute
from harness.quant.learning.block_trainer import (
    BlockTask,
    in_precision,
    reconstruction_loss,
    train_block,
)
from harness.quant.learning.learned import LearnedInput, LearnedLinear
from harness.quant.learning.learned_blocks import BlockLearner, LearnedBlock, LearnedOptions
from harness.quant.learning.recompute import feed_forward_parts, recomputed, recomputing
from tests.quant.plain_training import plain_form_

if TYPE_CHECKING:
    from harness.models.block_input import BlockInput

FAMILY = family_by_name("cogvideox")
WIDTH = 64


def small_block() -> nn.Module:
    torch.manual_seed(0)
    block: nn.Module = CogVideoXBlock(
        dim=WIDTH, num_attention_heads=1, attention_head_dim=WIDTH, time_embed_dim=16
    )
    return block.eval().requires_grad_(False)


def learned_form(
    block: nn.Module, given: BlockInput, dtype: torch.dtype = torch.float32, **options: Any
) -> tuple[nn.Module, LearnedBlock]:
    """A trainable block whose parameters have left their start."""
    ctx = QuantContext(
        bits=BitSpec.parse("w4a4"), options=LearnedOptions(**options), family=FAMILY,
        device=torch.device("cpu"),
    )  # fmt: skip
    absmax = channel_absmax(block, FAMILY, [given])
    trained, found = BlockLearner(ctx).trainable(
        block, FAMILY.groups(block), absmax, torch.Generator().manual_seed(0)
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters(found):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    if dtype == torch.float64:
        trained.double()
        for linear in found.linears.values():
            linear.weight, linear.dtype = linear.weight.double(), dtype
            linear.bias = None if linear.bias is None else linear.bias.double()
    return trained, found


def parameters(found: LearnedBlock) -> list[nn.Parameter]:
    inputs = [p for shared in found.inputs.values() for p in shared.parameters()]
    return inputs + [linear.clip for linear in found.linears.values() if linear.clip is not None]


def widened(given: BlockInput, dtype: torch.dtype) -> BlockInput:
    streams = {name: value.to(dtype) for name, value in given.streams.items()}
    moved = given.with_streams(streams)
    moved.fixed = {name: value.to(dtype) for name, value in given.fixed.items()}
    return moved


def gradients(
    trained: nn.Module, found: LearnedBlock, given: BlockInput, target: BlockInput
) -> tuple[Tensor, list[Tensor]]:
    found.begin_step()
    weights = {name: torch.linspace(0.5, 1, v.shape[1])[None] for name, v in given.streams.items()}
    with recomputing(trained, FAMILY):
        loss = reconstruction_loss(run_block(trained, FAMILY, given), target.streams, weights)
        found_gradients = torch.autograd.grad(loss, parameters(found))
    found.end_step()
    return loss.detach(), list(found_gradients)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradients_are_those_of_the_plain_formula(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recompute, "ROWS", 7)  # several stretches, the last one shorter
    block, given = small_block(), cogvideox_input(small_block(), 24)
    trained, found = learned_form(block, given, dtype)
    given = widened(given, dtype)
    target = given.with_streams({name: 0.9 * value for name, value in given.streams.items()})
    loss, got = gradients(trained, found, given, target)

    plain_form_(trained, found)
    weights = {name: torch.linspace(0.5, 1, v.shape[1])[None] for name, v in given.streams.items()}
    out = run_block(trained, FAMILY, given)
    expected = reconstruction_loss(out, target.streams, weights)
    wanted = torch.autograd.grad(expected, parameters(found))
    # reconstruction_loss is in single precision whatever comes in
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-6, atol=0)
    for mine, plainly in zip(got, wanted, strict=True):
        size = float(plainly.abs().amax())
        assert float((mine - plainly).abs().amax()) <= 2e-5 * size
        assert size > 0


def slope(trained: nn.Module, found: LearnedBlock, *, plain: bool) -> float:
    """Peak bytes a token of a step, the block's and the weights' own taken out."""
    peaks = []
    for tokens in (128, 256):
        given = cogvideox_input(small_block(), tokens)
        target = given.with_streams({name: 0.9 * v for name, v in given.streams.items()})
        with PeakTensors() as seen:
            if plain:
                plain_form_(trained, found)  # with maps of its own for this step
                out = run_block(trained, FAMILY, given)
                reconstruction_loss(out, target.streams, None).backward()
            else:
                gradients(trained, found, given, target)
        peaks.append(seen.peak)
    return (peaks[1] - peaks[0]) / 128


def test_a_step_takes_at_most_a_quarter_of_the_plain_formulas_bytes_a_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recompute, "ROWS", 32)
    block = small_block()
    trained, found = learned_form(block, cogvideox_input(block, 24))
    recomputing_step = slope(trained, found, plain=False)
    plain_step = slope(trained, found, plain=True)
    assert plain_step / (4 * WIDTH) > 55  # floats a token and channel
    assert recomputing_step <= plain_step / 4


def test_rounding_keeps_its_input_and_its_step_alone() -> None:
    x = torch.randn(6, 10, requires_grad=True)
    scale = torch.full((6, 1), 0.2, requires_grad=True)
    kept: list[Tensor] = []

    def keep(value: Tensor) -> Tensor:
        kept.append(value)
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        fake_quantize(x, Affine(scale, None), 4)
    assert {value.data_ptr() for value in kept} == {x.data_ptr(), scale.data_ptr()}


def test_a_recomputed_function_sums_what_every_stretch_adds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recompute, "ROWS", 3)
    x = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    gain = torch.randn(5, dtype=torch.float64, requires_grad=True)
    rows: list[int] = []

    def function(x: Tensor, gain: Tensor, absent: Tensor | None) -> Tensor:
        assert absent is None
        rows.append(x.shape[0])
        return (x * gain).sin()

    assert torch.autograd.gradcheck(lambda a, b: recomputed(function, a, b, None), (x, gain))
    assert max(rows) == 3
    rows.clear()
    recomputed(function, x, gain, None, by_row=False)
    assert rows == [2]  # the whole tensor, its first dimension


def test_parts_run_twice_and_are_left_as_they_were() -> None:
    block = small_block()
    given = cogvideox_input(block, 24)
    trained, found = learned_form(block, given)
    calls: list[str] = []
    for name, part in trained.named_children():
        part.register_forward_hook(lambda *_, name=name: calls.append(name))
    own = trained.ff.forward
    inner = trained.attn1.to_out[0]
    inner.register_forward_pre_hook(lambda *_: calls.append("to_out"))
    gradients(trained, found, given, given)
    assert calls.count("to_out") == 2
    assert {name for name, _ in trained.named_children()} <= set(calls)
    assert trained.ff.forward == own
    assert "forward" not in vars(trained.ff)
    calls.clear()
    with torch.no_grad(), recomputing(trained, FAMILY):
        run_block(trained, FAMILY, given)
    assert calls.count("to_out") == 1


def test_the_feed_forward_of_a_block_is_found_by_its_roles() -> None:
    assert feed_forward_parts(small_block(), FAMILY) == {"ff"}


def test_the_input_of_several_linears_is_forgotten_after_the_last() -> None:
    shared = LearnedInput(
        8, 4, scale=None, rotation="identity", clip=True, generator=torch.Generator(), readers=2
    )
    first, second = (LearnedLinear(nn.Linear(8, 3), shared, 4, clip=True) for _ in range(2))
    x = torch.randn(3, 8)
    first(x)
    assert shared._seen is not None
    second(x)
    assert shared._seen is None


def test_bfloat16_training_follows_single_precision() -> None:
    block = small_block()
    given = cogvideox_input(block, 96)
    with torch.no_grad():
        target = given.with_streams(run_block(block, FAMILY, given))
    curves, directions = [], []
    for precision in ("float32", "bfloat16"):
        dtype = getattr(torch, precision)
        trained, found = learned_form(block, given, precision=precision)
        _, grads = gradients(trained, found, in_precision(given, dtype), target)
        directions.append(torch.cat([g.flatten() for g in grads]))
        assert all(p.dtype == torch.float32 for p in parameters(found))
        curve = train_block(
            trained, FAMILY, BlockTask(inputs=[given], targets=[target]),
            [{"params": parameters(found), "lr": 2e-3}], optimizer=torch.optim.AdamW,
            steps=12, generator=torch.Generator().manual_seed(0),
            before_step=lambda step, found=found: found.begin_step(), dtype=dtype,
        )  # fmt: skip
        curves.append(curve)
    single, half = curves
    assert single[-1] < 0.9 * single[0]
    # 4 bits: a value that crosses a rounding boundary in bfloat16 moves by a whole step
    assert half == pytest.approx(single, rel=0.15)
    assert sum(half) == pytest.approx(sum(single), rel=0.05)
    assert float(torch.cosine_similarity(*directions, 0)) > 0.8


def test_bfloat16_takes_the_inputs_of_the_models_precision_and_leaves_the_rest() -> None:
    given = cogvideox_input(small_block(), 24)
    given.fixed |= {"mask": torch.ones(1, 3, dtype=torch.bool), "positions": (torch.ones(2),)}
    narrow = in_precision(given, torch.bfloat16)
    assert {v.dtype for v in narrow.streams.values()} == {torch.bfloat16}
    assert narrow.fixed["temb"].dtype == torch.bfloat16
    assert narrow.fixed["mask"].dtype == torch.bool
    assert narrow.fixed["positions"][0].dtype == torch.float32


def test_training_says_what_a_step_takes_and_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("harness.quant.learning.block_trainer.REPORT_INTERVAL_S", 0.0)
    block = small_block()
    given = cogvideox_input(block, 24)
    trained, found = learned_form(block, given)
    said: list[tuple[float, str]] = []
    train_block(
        trained, FAMILY, BlockTask(inputs=[given], targets=[given]),
        [{"params": parameters(found), "lr": 1e-3}], optimizer=torch.optim.AdamW, steps=4,
        generator=torch.Generator(), before_step=lambda step: found.begin_step(),
        progress=lambda share, text: said.append((share, text)),
    )  # fmt: skip
    assert [share for share, _ in said] == [0.25, 0.5, 0.75, 1.0]
    assert all("a step" in text and f"step {i}/4" in text for i, (_, text) in enumerate(said, 1))


def test_the_benchmark_tells_tokens_from_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recompute, "ROWS", 32)
    found = training_memory(small_block(), tokens=(128, 256))
    assert [step.tokens for step in found.steps] == [128, 256]
    assert found.width == WIDTH
    assert 5 < found.bytes_a_token / (4 * WIDTH) < 25
    weights = sum(p.numel() for p in small_block().parameters())
    assert found.fixed_bytes > 4 * weights
    one = training_step(small_block(), FAMILY, cogvideox_input(small_block(), 128), bits="w4a4")
    assert one.peak_bytes == found.steps[0].peak_bytes


def test_tensors_count_while_they_live() -> None:
    old = torch.ones(1000)
    with PeakTensors() as seen:
        old.add_(1)
        made = old * 2
        assert seen.live == 4000
        view = made[:10]
        assert seen.live == 4000
        del made
        assert seen.live == 4000
        del view
        assert seen.live == 0
    assert seen.peak == 4000
