"""What an artifact holds is read from the artifact alone."""

from __future__ import annotations

import copy
import csv
import io
import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from harness.artifact.inspect import clip_traces, inspect
from harness.cli.verify import verify
from harness.errors import HarnessError, UsageError
from harness.quant.layers.activation import ActivationSpec
from harness.quant.layers.artifact import save_artifact, stored_layers
from harness.quant.layers.linear import WeightSpec, quantize_linear
from harness.quant.layers.policy import TimestepPolicy, attach_policy_
from harness.quant.layers.switch import SwitchedLinear
from harness.store.store import Store

if TYPE_CHECKING:
    from pathlib import Path

FOOTPRINT = {"avg_a_bits": 7.5, "avg_a_bits_by_choice": [5.0, 8.0]}


class Denoiser(nn.Module):
    """Two linears of 32 x 16 and one of 4 x 32 that stays."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.last = nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        del timestep
        out: torch.Tensor = self.last(self.one(hidden_states) + self.two(hidden_states))
        return out


def mixed(folder: Path) -> nn.Module:
    """``one`` switches between a4 and a8, ``two`` is w8 in groups of 8."""
    model = Denoiser()
    forms = [quantize_linear(model.one, WeightSpec(bits=4), ActivationSpec(bits=a)) for a in (4, 8)]
    model.one = SwitchedLinear(forms)  # type: ignore[assignment]
    model.two = quantize_linear(  # type: ignore[assignment]
        model.two, WeightSpec(bits=8, symmetric=False, group=8), ActivationSpec(bits=16)
    )
    attach_policy_(model, TimestepPolicy([500.0]))
    about = {"bits": "w4a6", "method": {"name": "toy", "version": 3}}
    folder.mkdir(parents=True, exist_ok=True)
    save_artifact(model, folder, about)
    layers = [{"name": "one", "error": 0.25}, {"name": "two", "error": None}]
    report: dict[str, Any] = {"layers": layers, "footprint": FOOTPRINT, "mixed": "two is kept wide"}
    report["parts"] = {"other": 2.0, "training": 61.25, "rounding": 0.01}
    (folder / "report.json").write_text(json.dumps(report))
    return model


def test_averages_stand_beside_the_nominal_label(tmp_path: Path) -> None:
    mixed(tmp_path)
    found = inspect(tmp_path, [[0, 0, 0, 1], [0, 0, 1, 1]])
    assert (found.nominal, found.method) == ("w4a6", "toy, version 3")
    weights, biases, kept = 2 * 16 * 32, 2 * 32, 4 * 32 + 4
    assert found.total_parameters == weights + biases + kept
    assert found.w_bits_quantized == pytest.approx((4 + 8) / 2)
    stay = biases + kept
    assert found.w_bits_all == pytest.approx((512 * 12 + 16 * stay) / (weights + stay))
    assert found.histogram == (5, 3)
    switched = (5 * 4 + 3 * 8) / 8
    assert found.a_bits_weights == pytest.approx((switched + 16) / 2)
    assert found.a_bits_work == 7.5
    assert found.a_bits_clips == pytest.approx((5 * 5.0 + 3 * 8.0) / 8)
    files = ("artifact.json", "weights.safetensors")
    assert found.bytes == sum((tmp_path / name).stat().st_size for name in files)
    assert found.stored_bits == pytest.approx(8 * found.bytes / found.total_parameters)
    assert found.mixed == "two is kept wide"


def test_levels_are_those_that_really_occur(tmp_path: Path) -> None:
    model = Denoiser()
    with torch.no_grad():
        model.two.weight.copy_(torch.tensor([1.0, -1.0]).repeat(32, 8))
    model.two = quantize_linear(  # type: ignore[assignment]
        model.two, WeightSpec(bits=4), ActivationSpec(bits=4)
    )
    save_artifact(model, tmp_path, {})
    (layer,) = inspect(tmp_path).layers
    assert (layer.name, layer.kind, layer.shape) == ("two", "linear", (32, 16))
    (form,) = layer.forms
    assert form.levels == 2
    assert form.activation == "per token"
    assert layer.error is None


def test_stored_layers_compute_what_the_saved_ones_do(tmp_path: Path) -> None:
    model = mixed(tmp_path)
    x = torch.randn(3, 16)
    for name, layer in stored_layers(tmp_path):
        assert torch.equal(layer(x), model.get_submodule(name)(x))


def test_without_clips_nothing_is_said_about_the_steps(tmp_path: Path) -> None:
    mixed(tmp_path)
    found = inspect(tmp_path)
    assert found.a_bits_clips is None
    assert found.histogram == (0, 0)
    assert found.a_bits_weights == pytest.approx((6 + 16) / 2)


def test_the_steps_of_an_artifact_are_those_of_its_own_clips(tmp_path: Path) -> None:
    from harness.store.keys import digest

    store = Store(tmp_path)
    for quant, trace in (("mine", [1, 0]), ("mine", [0, 0, 0]), ("other", [1, 1])):
        inputs = {"quant": quant, "prompt": len(trace)}
        with store.build("clip", digest(inputs), inputs) as folder:
            (folder / "clip.json").write_text(json.dumps({"steps_by_choice": trace}))
    assert sorted(clip_traces(store, "mine")) == [[0, 0, 0], [1, 0]]
    assert clip_traces(store, "absent") == []


def invoke(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(
        verify, list(arguments), catch_exceptions=False, standalone_mode=False
    )
    return int(done.return_value or 0), done.stdout


def test_verify_prints_layers_averages_and_that_it_could_not_check(tmp_path: Path) -> None:
    mixed(tmp_path)
    code, text = invoke(str(tmp_path))
    lines = text.splitlines()
    assert code == 0
    one = next(line for line in lines if line.startswith("one "))
    assert "w4a4 | w4a8" in one
    assert "/16" in one
    assert "2.50e-01" in one
    assert any(line.startswith("nominal: w4a6 (toy, version 3)") for line in lines)
    assert any(line.startswith("step policy: timestep") for line in lines)
    assert any(line.startswith("mixed widths: two is kept wide") for line in lines)
    assert "calibration: 63.3 s (training 61.2 s, other 2.0 s)" in lines
    assert lines[-1].startswith("not checked")


def test_verify_writes_json_and_csv_that_read_back(tmp_path: Path) -> None:
    mixed(tmp_path)
    _, text = invoke(str(tmp_path), "--format", "json")
    found = json.loads(text)
    assert [layer["name"] for layer in found["layers"]] == ["one", "two"]
    assert found["problem"] is None
    _, text = invoke(str(tmp_path), "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [(r["layer"], r["form"], r["a_bits"]) for r in rows] == [
        ("one", "0", "4"),
        ("one", "1", "8"),
        ("two", "0", "16"),
    ]


def test_a_row_of_a_run_is_named_by_run_and_cell(tmp_path: Path) -> None:
    import dataclasses

    from harness.cli.targets import one_target
    from harness.store.records import write_run
    from tests.report.example import make_run

    mixed(tmp_path / "made")
    run = make_run(tmp_path / "run")
    row = "shapes--s2q--w4a6"
    cells = [
        dataclasses.replace(c, artifact=str(tmp_path / "made")) if c.id == row else c
        for c in run.cells
    ]
    model = {"name": "shapes", "judge": "oracle", "repo": ""}
    experiment = {**run.experiment, "models": [model]}
    write_run(dataclasses.replace(run, cells=tuple(cells), experiment=experiment))
    found = one_target(f"{tmp_path / 'run'}:{row}")
    assert (found.folder, found.model, found.bits) == (tmp_path / "made", "shapes", "w4a6")
    assert one_target(str(tmp_path / "made")).folder == tmp_path / "made"
    with pytest.raises(UsageError, match="is unknown"):
        one_target(f"{tmp_path / 'run'}:shapes--s2q--w4a5")
    with pytest.raises(UsageError, match="is a run, not an artifact"):
        one_target(str(tmp_path / "run"))
    with pytest.raises(HarnessError, match="is not a run folder"):
        one_target(str(tmp_path / "nowhere"))


def test_an_artifact_with_its_model_is_checked_and_a_wrong_one_fails(
    tmp_path: Path, tiny_pipeline_folder: Path
) -> None:
    from harness.models.families import family_by_name
    from harness.models.families.base import linear_at, target_linears
    from harness.quant.layers.apply import activation_of
    from harness.quant.layers.layers import replace_module_
    from harness.testing.conformance import tiny_pipeline

    model = copy.deepcopy(tiny_pipeline().transformer)
    targets = target_linears(family_by_name("cogvideox"), model)
    for name, group in targets.items():
        spec = activation_of(group, ActivationSpec(bits=4))
        linear = quantize_linear(linear_at(model, name), WeightSpec(bits=4), spec)
        replace_module_(model, name, linear)
    save_artifact(model, tmp_path, {"bits": "w4a4"})
    given = [str(tmp_path), "--model", str(tiny_pipeline_folder), "--bits"]
    code, text = invoke(*given, "w4a4")
    assert (code, text.splitlines()[-1]) == (0, f"ok    {tmp_path.name[:12]}")
    victim = next(iter(targets))
    plain = copy.deepcopy(tiny_pipeline().transformer)
    replace_module_(model, victim, linear_at(plain, victim))
    save_artifact(model, tmp_path, {"bits": "w4a4"})
    code, text = invoke(*given, "w4a4")
    assert code == 1
    assert text.splitlines()[-1].startswith("FAIL")
