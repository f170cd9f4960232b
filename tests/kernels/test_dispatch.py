"""A row runs by kernels whole or not at all, and says why not."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch

from harness.bits import BitSpec
from harness.errors import UsageError
from harness.kernels import dispatch
from harness.kernels.dispatch import execution_of, install_kernels_, usable
from harness.kernels.layer import KernelLinear
from harness.kernels.registry import load_kernel
from harness.method import QuantContext, resolve_options
from harness.models.experts import join_experts_
from harness.models.families import family_by_name
from harness.models.sample import denoiser_step, sample_clip
from harness.plan.registry import load_method
from harness.quant.layers.activation import activation_grid, quantize_activation
from harness.quant.layers.layers import quantized_layers
from harness.quant.layers.linear import QuantLinear
from harness.spec import SIMULATED
from harness.testing.conformance import Bench, make_bench
from harness.testing.miniatures import GENS, MINIATURES, wan
from tests.kernels.exact import Exact

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from harness.kernels.contract import Kernel, ReadInput
    from harness.kernels.product import Product

CPU = torch.device("cpu")
QUICK = {"samples": 2, "timesteps": 1, "epochs": 1, "iterations": 2, "search_samples": 1}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return make_bench("cogvideox", tmp_path_factory.mktemp("bench"))


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``exact`` be the only kernel, so that the choice is the same on every machine."""
    monkeypatch.setattr(dispatch, "kernel_names", lambda: ("exact",))
    monkeypatch.setattr(dispatch, "load_kernel", lambda name: Exact())


def quantized(family: str, name: str, bits: str, bench: Bench | None = None, **more: Any) -> Any:
    pipeline = MINIATURES[family](0) if bench is None else copy.copy(bench.pipeline)
    if bench is not None:
        denoiser = copy.deepcopy(bench.pipeline.transformer)
        pipeline.register_modules(transformer=denoiser)
    method = load_method(name)
    known = set(resolve_options(method, {}).__dataclass_fields__)
    options = {k: v for k, v in {**QUICK, **more}.items() if k in known}
    ctx = QuantContext(
        bits=BitSpec.parse(bits), options=resolve_options(method, options),
        family=family_by_name(family), device=CPU, pool=None if bench is None else bench.pool,
        data_free=not method.needs_calibration,
    )  # fmt: skip
    method.quantize_(pipeline.transformer, ctx)
    return pipeline


def install(pipeline: Any, family: str, setting: str = "auto") -> dispatch.Execution:
    return install_kernels_(
        pipeline.transformer, family_by_name(family), setting=setting, device=CPU
    )


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("family", sorted(MINIATURES))
def test_a_clip_by_kernels_is_that_of_the_simulation(family: str) -> None:
    gen = GENS[family]
    pipeline = quantized(family, "rtn", "w4a6")
    linears = len(quantized_layers(pipeline.transformer))
    expected = sample_clip(pipeline, "a red circle", gen, seed=0).latents
    found = install(pipeline, family)
    assert found.label == "kernel:exact"
    assert sum(found.layers.values()) == linears
    assert execution_of(pipeline.transformer) == found
    made = sample_clip(pipeline, "a red circle", gen, seed=0).latents
    # codes are the same unless a float sum of an earlier layer tips a rounding
    assert float((made - expected).square().mean() / expected.square().mean()) < 1e-3


@pytest.mark.usefixtures("exact")
def test_linears_that_read_one_tensor_round_it_once() -> None:
    pipeline = quantized("cogvideox", "rtn", "w4a6")
    install(pipeline, "cogvideox")
    attention = pipeline.transformer.transformer_blocks[0].attn1
    q, k, v = attention.to_q, attention.to_k, attention.to_v
    assert isinstance(q, KernelLinear)
    assert q.shared is k.shared is v.shared
    assert q.shared.readers == 3
    assert attention.to_out[0].shared.readers == 1


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize(
    ("name", "bits", "label", "reason"),
    [
        ("awq", "w4a16", "dequantize", ""),
        ("svdquant", "w4a4", SIMULATED, "exact: weights have a step for each 16 input channels"),
        ("dvdquant", "w4a4", SIMULATED, "exact: activations have a step for each 16 channels"),
        ("ptq4dit", "w4a6", "kernel:exact", ""),
        ("viditq", "w4a6", "kernel:exact", ""),
        ("quarot", "w8a8", "kernel:exact", ""),
        ("s2q", "w4a6", "kernel:exact", ""),
        ("qvlm", "w4a6", "kernel:exact", ""),
        ("qvdit", "w4a6", "kernel:exact", ""),
    ],
)
def test_every_method_runs_by_a_kernel_or_says_why_not(
    bench: Bench, name: str, bits: str, label: str, reason: str
) -> None:
    own = {"group": 16, "rank": 2, "points": 2, "checkpointing": False, "batch": 1}
    more = own if name in ("svdquant", "dvdquant", "qvdit") else {}
    pipeline = quantized("cogvideox", name, bits, bench, **more)
    gen = GENS["cogvideox"]
    expected = sample_clip(pipeline, "a red circle", gen, seed=0).latents
    found = install(pipeline, "cogvideox")
    assert found.label == label
    assert (reason in next(iter(found.reasons))) if reason else not found.reasons
    made = sample_clip(pipeline, "a red circle", gen, seed=0).latents
    assert float((made - expected).square().mean() / expected.square().mean()) < 1e-3
    by_kernel = [m for m in pipeline.transformer.modules() if isinstance(m, KernelLinear)]
    assert bool(by_kernel) == (label == "kernel:exact")


@pytest.mark.usefixtures("exact")
def test_a_step_for_each_channel_has_no_kernel_anywhere() -> None:
    pipeline = quantized("cogvideox", "dvdquant", "w4a4", arq="literal")
    assert "cannot be taken out of a product" in next(iter(install(pipeline, "cogvideox").reasons))


@pytest.mark.usefixtures("exact")
def test_both_experts_run_by_kernels() -> None:
    pipeline = wan(experts=2)
    join_experts_(pipeline)
    method = load_method("rtn")
    for part in ("transformer", "transformer_2"):
        ctx = QuantContext(
            bits=BitSpec.parse("w4a6"), options=method.Options(), family=family_by_name("wan"),
            device=CPU, data_free=True,
        )  # fmt: skip
        method.quantize_(pipeline.transformer.get_submodule(part), ctx)
    found = install(pipeline, "wan")
    by_kernel = [m for m in pipeline.transformer.modules() if isinstance(m, KernelLinear)]
    assert found.label == "kernel:exact"
    assert len(by_kernel) == found.layers["kernel:exact, int8 lanes"]
    assert any(one.shared.readers == 3 for one in by_kernel)


def test_off_and_a_kernel_for_another_device_leave_a_row_simulated_and_say_so() -> None:
    pipeline = quantized("cogvideox", "rtn", "w4a6")
    assert install(pipeline, "cogvideox", "off").reasons.keys() == {"kernels are off"}
    found = install(pipeline, "cogvideox", "int-mm")
    assert found.label == SIMULATED
    assert found.reasons.keys() == {"int-mm: it is for NVIDIA GPUs"}
    assert not any(isinstance(m, KernelLinear) for m in pipeline.transformer.modules())


def test_a_row_that_is_not_quantized_has_no_execution() -> None:
    pipeline = MINIATURES["cogvideox"](0)
    assert install(pipeline, "cogvideox") == execution_of(pipeline.transformer)
    assert not execution_of(pipeline.transformer).label


def test_an_unknown_kernel_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(UsageError, match="no installed kernel") as caught:
        usable("cutlass", CPU)
    assert "onednn-int8" in caught.value.hint


class Failing(Exact):
    name = "failing"

    def product(self, layer: QuantLinear) -> Product:
        raise RuntimeError("no such operator\nwith a trace")


def test_a_kernel_that_fails_on_a_trial_is_none_and_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dispatch.inexact.cache_clear()
    monkeypatch.setattr(dispatch, "kernel_names", lambda: ("failing", "exact"))
    kernels = {"failing": Failing(), "exact": Exact()}
    monkeypatch.setattr(dispatch, "load_kernel", kernels.__getitem__)
    found, _ = usable("auto", CPU)
    states = dispatch.kernel_states()
    dispatch.inexact.cache_clear()
    assert [kernel.name for kernel in found] == ["exact"]
    assert states[0].missing == "it fails on a trial: RuntimeError: no such operator"
    assert states[1].devices[0] == "cpu"


def simulated_inputs(pipeline: Any) -> list[tuple[Tensor, Tensor]]:
    """Values and steps of every input that a step of the denoiser rounds, each input once."""
    found: list[tuple[Tensor, Tensor]] = []

    def noting(layer: Any, given: tuple[Tensor, ...]) -> None:
        spec = layer.activation_spec
        exact = layer.transform(given[0]).flatten(0, -2).float()
        values = quantize_activation(exact, spec)
        # the simulation rounds an input once for each of its readers
        if not found or not torch.equal(found[-1][0], values):
            found.append((values, activation_grid(exact, spec).scale))

    rounded = [
        m for m in pipeline.transformer.modules()
        if isinstance(m, QuantLinear) and m.activation_spec.bits < 16
    ]  # fmt: skip
    hooks = [m.register_forward_pre_hook(noting) for m in rounded]
    with torch.no_grad():
        denoiser_step(pipeline, GENS["cogvideox"])()
    for hook in hooks:
        hook.remove()
    return found


def inputs_by_kernel(pipeline: Any) -> list[Tensor]:
    """Values of every input that a step of the denoiser reads for its kernels."""
    found: list[Tensor] = []

    def noted(read: Callable[[Tensor], ReadInput]) -> Callable[[Tensor], ReadInput]:
        def reading(x: Tensor) -> ReadInput:
            known = read(x)
            found.append(known.codes.values_of(torch.float32))
            return known

        return reading

    by_kernel = [m for m in pipeline.transformer.modules() if isinstance(m, KernelLinear)]
    for shared in {id(m.shared): m.shared for m in by_kernel}.values():
        shared.read = noted(shared.read)
    with torch.no_grad():
        denoiser_step(pipeline, GENS["cogvideox"])()
    return found


@pytest.mark.parametrize("kernel", ["exact", "x86-int8"])
@pytest.mark.parametrize(
    ("name", "bits", "more"),
    [
        ("rtn", "w4a6", {}), ("rtn", "w8a8", {}), ("quarot", "w4a4", {}),
        ("svdquant", "w4a4", {"group": 32, "rank": 2}),
    ],
)  # fmt: skip
def test_hardly_a_code_of_a_step_differs_and_none_by_more_than_a_level(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, kernel: str, name: str, bits: str, more: Any
) -> None:
    """Sums of floats behind the products differ in their last bit, which tips a code at an edge."""
    used: Kernel = Exact() if kernel == "exact" else load_kernel(kernel)
    why = used.missing(CPU)
    if why:
        pytest.skip(why)
    monkeypatch.setattr(dispatch, "kernel_names", lambda: (kernel,))
    monkeypatch.setattr(dispatch, "load_kernel", lambda name: used)
    pipeline = quantized("cogvideox", name, bits, bench, **more)
    simulated = simulated_inputs(pipeline)
    if install(pipeline, "cogvideox").label == SIMULATED:
        pytest.skip("it takes no groups")
    found = inputs_by_kernel(pipeline)
    assert len(found) == len(simulated)
    differ = total = 0.0
    for mine, (values, scale) in zip(found, simulated, strict=True):
        levels = (
            (mine - values).view(*values.shape[:1], -1, values.shape[1] // scale.shape[1])
            if scale.ndim == 3
            else mine - values
        ).abs() / scale
        assert float(levels.max()) < 1.01
        differ += float((levels > 0.5).sum())
        total += mine.numel()
    assert differ <= 0.001 * total
