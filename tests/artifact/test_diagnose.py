"""What a diagnosis says is held against direct computation on the miniature."""

from __future__ import annotations

import copy
import csv
import dataclasses
from typing import TYPE_CHECKING

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from harness.artifact.diagnose import Diagnosis, denoiser_calls, diagnose
from harness.cli.diagnose import diagnose as command
from harness.errors import UsageError
from harness.models.block_input import Sample
from harness.models.experts import FIRST, join_experts_
from harness.models.families import family_by_name as family
from harness.models.families.base import linear_at, target_linears
from harness.models.families.fold import fold_scale_
from harness.models.trajectories import record_pool
from harness.quant.layers.activation import ActivationSpec
from harness.quant.layers.apply import activation_of
from harness.quant.layers.artifact import load_artifact_, save_artifact
from harness.quant.layers.layers import replace_module_
from harness.quant.layers.linear import QuantLinear, WeightSpec, quantize_linear
from harness.quant.layers.policy import TimestepPolicy, attach_policy_
from harness.quant.layers.switch import SwitchedLinear
from harness.spec import Prompt
from harness.testing.miniatures import GENS, MINIATURES, wan

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from diffusers import DiffusionPipeline

COG = "cogvideox"
PROMPTS = (
    Prompt(id="a", text="a red circle moving left"),
    Prompt(id="b", text="a blue square grows"),
)
PIPELINE = MINIATURES[COG]()


def quantized(transformer: nn.Module, name: str, w: int, a: int) -> nn.Module:
    """Round every target of a copy to nearest."""
    made = copy.deepcopy(transformer)
    for target, group in target_linears(family(name), made).items():
        replace_module_(made, target, rounded(made, target, w, activation_of(group, spec(a))))
    return made


def spec(bits: int) -> ActivationSpec:
    return ActivationSpec(bits=bits)


def rounded(model: nn.Module, target: str, w: int, activation: ActivationSpec) -> QuantLinear:
    return quantize_linear(linear_at(model, target), WeightSpec(bits=w), activation)


def artifact(folder: Path, model: nn.Module) -> Path:
    folder.mkdir()
    save_artifact(model, folder, {"bits": "w4a4"})
    return folder


def diagnosed(
    folder: Path,
    *models: nn.Module,
    counts: Sequence[int] = (),
    pipeline: DiffusionPipeline = PIPELINE,
    name: str = COG,
) -> list[Diagnosis]:
    (folder / "work").mkdir()
    return diagnose(
        pipeline, [artifact(folder / str(i), m) for i, m in enumerate(models)], PROMPTS,
        GENS[name], family=name, counts=counts, folder=folder / "work",
        progress=lambda fraction, text: None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[Diagnosis]:
    """The miniature at w4a4 and at w8a8."""
    models = [quantized(PIPELINE.transformer, COG, bits, bits) for bits in (4, 8)]
    return diagnosed(tmp_path_factory.mktemp("pair"), *models, counts=(2, 4))


def test_fewer_bits_are_further_away_everywhere(pair: list[Diagnosis]) -> None:
    four, eight = pair
    targets = set(target_linears(family(COG), PIPELINE.transformer))
    steps = GENS[COG].steps
    assert {(e.layer, e.step) for e in four.layers} == {
        (t, s) for t in targets for s in range(steps)
    }
    wide = {(e.layer, e.step): e.error for e in eight.layers}
    assert all(0 < wide[e.layer, e.step] < e.error for e in four.layers)
    for a, b in zip(four.blocks, eight.blocks, strict=True):
        assert (a.block, a.step) == (b.block, b.step)
        assert b.own < a.own
        assert b.prefix < a.prefix
    for x, y in zip(four.steps, eight.steps, strict=True):
        assert y.forced < x.forced
        assert y.free < x.free
        assert y.latent < x.latent


def test_what_is_forced_and_what_is_free_agree_while_the_latents_do(pair: list[Diagnosis]) -> None:
    first, later = pair[0].steps[0], pair[0].steps[-1]
    assert first.free == pytest.approx(first.conditional, rel=1e-5)
    assert later.free != pytest.approx(later.conditional, rel=1e-5)
    growth = pair[0].growth
    assert growth == pytest.approx(later.free / (later.conditional or 0))


def test_the_first_block_has_no_prefix_and_the_second_has(pair: list[Diagnosis]) -> None:
    for row in pair[0].blocks:
        if row.block == "transformer_blocks.0":
            assert row.prefix == pytest.approx(row.own, rel=1e-6)
        else:
            assert row.prefix > row.own


def test_step_counts_name_those_asked_for_and_agree_with_the_run(pair: list[Diagnosis]) -> None:
    assert [c.steps for c in pair[0].counts] == [2, 4]
    assert pair[0].counts[1].latent == pytest.approx(pair[0].steps[-1].latent)
    assert pair[0].counts[0].latent != pytest.approx(pair[0].counts[1].latent)


def test_every_number_of_a_step_is_what_loops_over_the_passes_give(
    tmp_path: Path, pair: list[Diagnosis]
) -> None:
    exact, twin = PIPELINE.transformer, quantized(PIPELINE.transformer, COG, 4, 4)
    gen, step = GENS[COG], 2
    pool = record_pool(PIPELINE, PROMPTS, gen, seed=0, folder=tmp_path, progress=lambda f, t: None)
    sums = {part: [0.0, 0.0] for part in ("forced", "0", "1", "direction", "guided")}
    with torch.no_grad():
        for prompt in range(len(PROMPTS)):
            arguments = pool.call(Sample(prompt, step)).arguments
            x, y = exact(**arguments)[0].double(), twin(**arguments)[0].double()
            views = {"forced": (x, y), "0": (x[0], y[0]), "1": (x[1], y[1])}
            views["direction"] = (x[1] - x[0], y[1] - y[0])
            views["guided"] = tuple(v[0] + gen.guidance * (v[1] - v[0]) for v in (x, y))  # type: ignore[assignment]
            for part, (a, b) in views.items():
                sums[part][0] += float(((a - b) ** 2).sum())
                sums[part][1] += float((a**2).sum())
    row = pair[0].steps[step]
    said = {
        "forced": row.forced,
        "0": row.unconditional,
        "1": row.conditional,
        "direction": row.direction,
        "guided": row.guided,
    }
    for part, (above, below) in sums.items():
        assert said[part] == pytest.approx(above / below, rel=1e-5), part


def test_the_error_of_a_layer_is_that_of_its_block_on_exact_inputs(
    tmp_path: Path, pair: list[Diagnosis]
) -> None:
    exact, twin = PIPELINE.transformer, quantized(PIPELINE.transformer, COG, 4, 4)
    name, layer, step = "transformer_blocks.1", "ff.net.0.proj", 1
    pool = record_pool(
        PIPELINE, PROMPTS, GENS[COG], seed=0, folder=tmp_path, progress=lambda f, t: None
    )
    above = below = 0.0
    with torch.no_grad():
        for prompt in range(len(PROMPTS)):
            held: dict[str, object] = {}

            def grab(
                _: nn.Module,
                args: tuple[object, ...],
                kwargs: dict[str, object],
                held: dict[str, object] = held,
            ) -> None:
                held["call"] = (args, kwargs)

            block = exact.get_submodule(name)
            handle = block.register_forward_pre_hook(grab, with_kwargs=True)
            exact(**pool.call(Sample(prompt, step)).arguments)
            handle.remove()
            outputs = []
            for model in (exact, twin):
                seen: list[torch.Tensor] = []
                place = model.get_submodule(f"{name}.{layer}")
                handle = place.register_forward_hook(lambda m, a, out, seen=seen: seen.append(out))
                args, kwargs = held["call"]  # type: ignore[misc]
                model.get_submodule(name)(*args, **kwargs)
                handle.remove()
                outputs.append(seen[0].double())
            above += float(((outputs[0] - outputs[1]) ** 2).sum())
            below += float((outputs[0] ** 2).sum())
    said = next(e for e in pair[0].layers if (e.layer, e.step) == (f"{name}.{layer}", step))
    assert said.error == pytest.approx(above / below, rel=1e-5)


def test_a_fold_is_no_error(tmp_path: Path) -> None:
    """Scales folded into modulations and values, nothing rounded: the outputs are the same."""
    model = copy.deepcopy(PIPELINE.transformer)
    generator = torch.Generator().manual_seed(0)
    for _, block in family(COG).blocks(model):
        for group in family(COG).groups(block):
            if group.fold is None:
                continue
            width = block.get_submodule(group.linears[0]).in_features
            scale = torch.rand(int(width), generator=generator) * 1.5 + 1.5
            assert fold_scale_(block, group, scale) is None
    (found,) = diagnosed(tmp_path, quantized(model, COG, 16, 16))
    assert max(s.forced for s in found.steps) < 1e-9
    assert max(e.error for e in found.layers) < 1e-6
    folded = {e.layer.split(".", 2)[2] for e in found.layers if e.folded}
    assert folded == {"attn1.to_v"}
    modulations = {name.split(".", 2)[2] for name in found.uncompared}
    assert modulations == {"norm1.linear", "norm2.linear"}
    assert not {e.layer for e in found.layers} & set(found.uncompared)


def test_rounding_is_not_taken_for_a_fold(pair: list[Diagnosis]) -> None:
    assert not [e for e in (*pair[0].layers, *pair[1].layers) if e.folded]
    assert not pair[0].uncompared + pair[1].uncompared


def test_the_forms_of_a_step_policy_stand_beside_their_steps(tmp_path: Path) -> None:
    model = copy.deepcopy(PIPELINE.transformer)
    for target, group in target_linears(family(COG), model).items():
        forms = [rounded(model, target, 4, activation_of(group, spec(a))) for a in (4, 8)]
        replace_module_(model, target, SwitchedLinear(forms))
    attach_policy_(model, TimestepPolicy([500.0]))
    (found,) = diagnosed(tmp_path, model)
    for step in found.steps:
        assert step.form == ("0/0" if step.timestep > 500 else "1/1")


@pytest.mark.parametrize("name", [n for n in MINIATURES if n != COG])
def test_every_family_can_be_diagnosed(tmp_path: Path, name: str) -> None:
    pipeline = MINIATURES[name]()
    model = quantized(pipeline.transformer, name, 8, 8)
    (found,) = diagnosed(tmp_path, model, pipeline=pipeline, name=name)
    targets = set(target_linears(family(name), pipeline.transformer))
    assert {e.layer for e in found.layers} == targets
    for step in found.steps:
        assert 0 < step.forced < 0.5
        assert (step.guided is None) == (family(name).guidance == "embedded")
    first = found.steps[0]
    forced = first.forced if first.conditional is None else first.conditional
    # Where the sampler calls branch by branch, sums have another order and roundings may flip.
    assert first.free == pytest.approx(forced, rel=0.05)


def test_two_experts_are_diagnosed_each_at_its_own_steps(tmp_path: Path) -> None:
    pipeline = wan(experts=2)
    join_experts_(pipeline)
    model = quantized(pipeline.transformer, "wan", 8, 8)
    (found,) = diagnosed(tmp_path, model, pipeline=pipeline, name="wan")
    assert {e.layer for e in found.layers} == set(
        target_linears(family("wan"), pipeline.transformer)
    )
    for error in found.layers:
        assert (error.step < 2) == error.layer.startswith(f"{FIRST}.")
    for block in found.blocks:
        assert (block.step < 2) == block.block.startswith(f"{FIRST}.")
        assert block.own > 0
    assert all(0 < step.forced < 0.5 for step in found.steps)
    assert found.steps[0].free == pytest.approx(found.steps[0].conditional, rel=0.05)


def test_the_cost_counts_every_call(tmp_path: Path) -> None:
    calls = []
    hook = PIPELINE.transformer.register_forward_pre_hook(lambda m, a: calls.append(1))
    try:
        twin = quantized(PIPELINE.transformer, COG, 8, 8)  # its copies count too
        diagnosed(tmp_path, twin, counts=(2, 4))
    finally:
        hook.remove()
    gen = GENS[COG]
    blockwise = len(PROMPTS) * gen.steps + gen.steps  # runs of single blocks, no whole call
    assert len(calls) == denoiser_calls(len(PROMPTS), gen.steps, 1, [2]) - blockwise


def test_the_command_says_prompts_and_cost_first_and_leaves_its_files(
    tmp_path: Path, tiny_pipeline_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.models import table
    from harness.models.settings import Settled

    few = Settled(gen=dataclasses.replace(GENS[COG], steps=3), sources={}, model="")
    monkeypatch.setattr(table, "settle", lambda description: few)
    (tmp_path / "p.txt").write_text("a red circle moving left\na blue square grows\n")
    folders = [
        artifact(tmp_path / f"w{bits}", quantized(PIPELINE.transformer, COG, bits, bits))
        for bits in (4, 8)
    ]
    arguments = [*map(str, folders), "--model", str(tiny_pipeline_folder), "--device", "cpu"]
    arguments += ["--suite", str(tmp_path / "p.txt"), "--prompts", "1", "--steps", "2,3"]
    out = tmp_path / "out"
    done = CliRunner().invoke(command, [*arguments, "--out", str(out)], catch_exceptions=False)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("w4 and w8 against full precision of tiny")
    assert "1 prompts of" in lines[0]
    assert lines[1].endswith("a red circle moving left")
    assert "denoiser calls, about" in lines[2]
    assert lines[-1] == str(out)
    for title in ("by step", "by guidance branch", "by block", "by layer", "final latent"):
        assert any(line.startswith(title) for line in lines), title
    assert (out / "layers-w4.png").read_bytes()[:4] == b"\x89PNG"
    rows = list(csv.DictReader((out / "layers.csv").read_text().splitlines()))
    assert {row["artifact"] for row in rows} == {"w4", "w8"}
    assert len(rows) == 2 * 3 * len(target_linears(family(COG), PIPELINE.transformer))
    counts = csv.DictReader((out / "counts.csv").read_text().splitlines())
    assert [row["steps"] for row in counts] == ["2", "3"] * 2
    assert not (out / "seeds.csv").exists()


def test_the_command_refuses_what_it_cannot_compare(tmp_path: Path) -> None:
    one = str(artifact(tmp_path / "one", quantized(PIPELINE.transformer, COG, 4, 4)))
    with pytest.raises(UsageError, match="its model is not recorded"):
        CliRunner().invoke(command, [one], catch_exceptions=False)
    with pytest.raises(UsageError, match="3 artifacts"):
        CliRunner().invoke(command, [one] * 3, catch_exceptions=False)


def test_a_loaded_artifact_is_what_is_diagnosed(tmp_path: Path) -> None:
    """Sanity of the fixtures above: saving and loading changes nothing."""
    model = quantized(PIPELINE.transformer, COG, 4, 4)
    loaded = copy.deepcopy(PIPELINE.transformer)
    load_artifact_(loaded, artifact(tmp_path / "x", model))
    for name, layer in model.named_modules():
        if isinstance(layer, QuantLinear):
            assert torch.equal(layer.codes, loaded.get_submodule(name).codes)
