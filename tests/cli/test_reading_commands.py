"""The commands that only read: report, compare, show."""

from __future__ import annotations

import csv
import io

import pytest
from click.testing import CliRunner

from harness.cli.compare import compare
from harness.cli.report import report
from harness.cli.show import show
from harness.errors import HarnessError
from tests.report.example import PROMPTS, make_run


def invoke(command, *arguments):
    done = CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_report_prints_the_table_and_writes_its_files(tmp_path):
    make_run(tmp_path)
    assert "fidelity to fp" in invoke(report, tmp_path)
    assert (tmp_path / "table.tex").exists()


def test_report_in_one_format_writes_nothing(tmp_path):
    make_run(tmp_path)
    before = sorted(tmp_path.iterdir())
    rows = list(csv.DictReader(io.StringIO(invoke(report, tmp_path, "--format", "csv"))))
    assert rows[0]["label"] == "fp"
    assert "\\toprule" in invoke(report, tmp_path, "--format", "tex")
    assert "| s2q | w4a6 |" in invoke(report, tmp_path, "--format", "md")
    assert sorted(tmp_path.iterdir()) == before


def test_report_shows_only_the_chosen_metrics(tmp_path):
    make_run(tmp_path)
    text = invoke(report, tmp_path, "--metrics", "psnr_db,ssim")
    assert "PSNR" in text
    assert "latent" not in text


def test_report_of_a_folder_that_is_no_run_is_an_error(tmp_path):
    with pytest.raises(HarnessError, match="is not a run folder"):
        invoke(report, tmp_path)


def test_compare_prints_differences_with_intervals_and_verdicts(tmp_path):
    make_run(tmp_path)
    text = invoke(compare, tmp_path, "--reference", "s2q", "--bits", "w4a6")
    assert "rtn-gptq w4a6" in text
    assert "worse" in text
    assert "shapes-eval v1" in text


def test_compare_says_that_one_prompt_has_no_interval(tmp_path):
    make_run(tmp_path, prompts=PROMPTS[:1])
    assert "none of one prompt" in invoke(compare, tmp_path, "--reference", "s2q")


def test_show_run_prints_rows_with_status_and_provenance(tmp_path):
    make_run(tmp_path, failed_row="shapes--rtn--w4a4")
    text = invoke(show, "run", tmp_path)
    assert "shapes--rtn--w4a4" in text
    assert "oom" in text
    assert "worker used more than 24 GiB" in text
    assert "harness: 0.1.0" in text
    assert "striped background" not in text  # the prompts' texts would bury the rest


def test_show_method_prints_source_options_and_every_deviation():
    from harness.plan.registry import load_method

    text = " ".join(invoke(show, "method", "s2q").split())
    found = load_method("s2q")
    assert found.reproduction.title in text
    assert found.reproduction.deviations
    for deviation in found.reproduction.deviations:
        assert f"[{deviation.kind}]" in text
        assert " ".join(deviation.what.split()) in text


def test_show_method_of_an_unknown_name_is_an_error():
    with pytest.raises(HarnessError, match="is unknown"):
        invoke(show, "method", "s2qq")


def test_show_artifact_lists_every_layer_with_its_widths(tmp_path):
    import torch

    from harness.quant.layers.activation import ActivationSpec
    from harness.quant.layers.artifact import save_artifact
    from harness.quant.layers.linear import WeightSpec, quantize_linear

    model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.LayerNorm(4))
    model[0] = quantize_linear(model[0], WeightSpec(bits=4), ActivationSpec(bits=6))
    save_artifact(model, tmp_path, {"method": "rtn"})
    text = invoke(show, "artifact", tmp_path)
    assert "method: rtn" in text
    assert "4x8" in text
    assert "w4a6" in text
    assert "layers: 1" in text
