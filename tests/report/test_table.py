from __future__ import annotations

import dataclasses
import math

import pytest

from harness.errors import HarnessError, UsageError
from harness.kernels.request import OFF_REASON
from harness.report import columns as col
from harness.report.build import build_table
from harness.report.table import parts
from harness.report.values import Values
from harness.spec import COST, FIDELITY, OTHER, QUALITY, Status
from harness.store.records import load_run
from tests.report.example import KERNEL, PROMPTS, cell_id, make_run


def block(table, title, model="shapes"):
    return next(b for b in table.blocks if b.title == title and b.model == model)


def entry(table, title, cell, key):
    found = block(table, title)
    index = [c.key for c in found.columns].index(key)
    return next(line for line in found.lines if line.cell == cell).entries[index]


def text(table, title, cell, key):
    found = block(table, title)
    index = [c.key for c in found.columns].index(key)
    line = next(line for line in found.lines if line.cell == cell)
    return parts(found.columns[index], line.entries[index])


def test_blocks_come_as_quality_fidelity_cost(tmp_path):
    table = build_table(make_run(tmp_path))
    assert [b.title for b in table.blocks] == [QUALITY, FIDELITY, COST]


def test_reference_rows_come_first_and_widths_stay_together(tmp_path):
    run = make_run(tmp_path)
    mixed = dataclasses.replace(run, cells=tuple(reversed(run.cells)))
    lines = build_table(mixed).blocks[0].lines
    assert {line.label for line in lines[:2]} == {"fp", "control"}
    assert [line.bits for line in lines[2:]] == ["w4a4"] * 2 + ["w4a6"] * 4


def test_the_mean_is_that_of_the_prompts_after_averaging_seeds(tmp_path):
    run = make_run(tmp_path, seeds=(0, 1, 2))
    cell = cell_id("s2q", "w4a6")
    values = [r.value for r in run.records if r.cell == cell and r.metric == "psnr_db"]
    found = entry(build_table(run), FIDELITY, cell, "psnr_db")
    assert found.value == pytest.approx(sum(values) / len(values))
    assert found.n == len(PROMPTS)
    assert found.low < found.value < found.high


def test_only_a_separated_winner_is_bold_and_its_runner_up_underlined(tmp_path):
    table = build_table(make_run(tmp_path))
    marks = {
        line.label: parts_of.mark
        for line in block(table, FIDELITY).lines
        if line.bits == "w4a6"
        for parts_of in [line.entries[0]]
    }
    assert marks == {"rtn": "", "rtn-gptq": "", "ptq4dit": "second", "s2q": "best"}


def test_lower_is_better_where_the_metric_says_so(tmp_path):
    table = build_table(make_run(tmp_path))
    assert entry(table, FIDELITY, cell_id("s2q", "w4a6"), "latent_error").mark == "best"


def test_a_tie_at_the_top_marks_nobody(tmp_path):
    run = make_run(tmp_path)
    tied = tuple(c for c in run.cells if c.label in ("fp", "rtn", "rtn-gptq") and c.bits != "w4a4")
    table = build_table(dataclasses.replace(run, cells=tied))
    lines = [line for line in block(table, FIDELITY).lines if not line.unquantized]
    assert [line.entries[0].mark for line in lines] == ["", ""]


def test_reference_rows_are_never_ranked(tmp_path):
    table = build_table(make_run(tmp_path))
    for found in table.blocks:
        assert all(e.mark == "" for line in found.lines[:2] for e in line.entries)


def test_the_difference_to_fp_is_paired_by_prompt(tmp_path):
    run = make_run(tmp_path)
    table = build_table(run)
    by_cell = {
        cell: {
            r.prompt: r.value for r in run.records if r.cell == cell and r.metric == "margin_all"
        }
        for cell in (cell_id("s2q", "w4a6"), cell_id("fp", "fp"))
    }
    mine, base = by_cell.values()
    found = entry(table, QUALITY, cell_id("s2q", "w4a6"), "margin_all_minus_fp")
    assert found.value == pytest.approx(sum(mine[p] - base[p] for p in mine) / len(mine))
    assert found.mark == "differs"
    assert found.p_holm < 0.05


def test_control_is_a_noise_floor_and_gets_no_adjusted_p(tmp_path):
    found = entry(
        build_table(make_run(tmp_path)),
        QUALITY,
        cell_id("control", "fp"),
        "oracle_all_minus_fp",
    )
    assert found.value == 0.0
    assert found.p_holm is None


def test_fp_has_no_fidelity_to_itself(tmp_path):
    table = build_table(make_run(tmp_path))
    assert text(table, FIDELITY, cell_id("fp", "fp"), "psnr_db").main == "reference"
    assert not table.notes


def test_a_simulated_row_shows_no_latency_no_memory_and_no_gain(tmp_path):
    table = build_table(make_run(tmp_path))
    cell = cell_id("s2q", "w4a6")
    for metric in ("step_latency_s", "clip_latency_s", "peak_bytes"):
        found = entry(table, COST, cell, metric)
        assert (found.text, found.value, found.spread) == ("simulated", None, None)
    assert "step_speedup" not in [c.key for c in block(table, COST).columns]
    assert any(r.startswith("simulated") for r in table.remarks)


def test_a_kernel_row_shows_its_latency_and_its_gain_over_fp(tmp_path):
    cell = cell_id("s2q", "w4a6")
    run = make_run(tmp_path, kernel_row=cell)
    table = build_table(run)
    assert next(c for c in run.cells if c.id == cell).execution == KERNEL
    assert text(table, COST, cell, "step_latency_s").main == "21.1"
    assert text(table, COST, cell, "step_latency_s").spread == "±0.8"
    assert entry(table, COST, cell, "step_speedup").value == pytest.approx(2.0)
    assert entry(table, COST, cell_id("rtn", "w4a6"), "step_speedup").value is None


def test_a_record_marked_simulated_is_not_shown_even_in_a_kernel_row(tmp_path):
    cell = cell_id("s2q", "w4a6")
    run = make_run(tmp_path)
    cells = tuple(
        dataclasses.replace(c, execution=KERNEL) if c.id == cell else c for c in run.cells
    )
    table = build_table(dataclasses.replace(run, cells=cells))
    assert entry(table, COST, cell, "step_latency_s").text == "simulated"


def test_layers_stand_with_their_share_of_the_weights(tmp_path):
    run = make_run(tmp_path)
    cell = cell_id("rtn", "w4a6")
    assert text(build_table(run), COST, cell, "layers_quantized").main == "60/60 (100 %)"

    def share(value):
        records = tuple(
            dataclasses.replace(r, value=value) if r.metric == "weights_quantized" else r
            for r in run.records
        )
        table = build_table(dataclasses.replace(run, records=records))
        return text(table, COST, cell, "layers_quantized").main

    assert share(0.961) == "60/60 (96.1 %)"
    assert share(0.99999) == "60/60 (<100 %)"


def test_a_failed_row_stays_with_status_and_reason(tmp_path):
    cell = cell_id("rtn", "w4a4")
    table = build_table(make_run(tmp_path, failed_row=cell))
    for found in table.blocks:
        line = next(line for line in found.lines if line.cell == cell)
        shown = [parts(c, line.entries[i]).main for i, c in found.visible()]
        assert shown == ["oom"] + ["-"] * (len(shown) - 1)
        assert line.entries[0].notes == ("a",)
    assert table.notes == (("a", "rtn w4a4: oom: worker used more than 24 GiB"),)


def test_what_a_failed_row_scored_before_it_failed_is_no_result(tmp_path):
    run = make_run(tmp_path)
    cell = cell_id("rtn", "w4a4")
    cells = tuple(
        dataclasses.replace(c, status=Status.KILLED, detail="signal 9") if c.id == cell else c
        for c in run.cells
    )
    table = build_table(dataclasses.replace(run, cells=cells))
    for found in table.blocks:
        line = next(line for line in found.lines if line.cell == cell)
        assert line.entries[0].text == "killed"
        assert all(e.value is None for e in line.entries)


def test_warnings_of_the_run_stand_under_the_table(tmp_path):
    run = make_run(tmp_path)
    noted = run.provenance | {"failures": ["measuring: oom"], "warnings": ["busy machine"]}
    remarks = build_table(dataclasses.replace(run, provenance=noted)).remarks
    assert remarks[-2:] == ("warning: measuring: oom", "warning: busy machine")


def test_missing_prompts_are_told_in_a_footnote(tmp_path):
    run = make_run(tmp_path)
    cell = cell_id("s2q", "w4a6")
    lost = set(PROMPTS[:3])
    kept = tuple(r for r in run.records if not (r.cell == cell and r.prompt in lost))
    table = build_table(dataclasses.replace(run, records=kept))
    assert ("a", "s2q w4a6: 13 of 16 prompts") in table.notes
    assert entry(table, FIDELITY, cell, "psnr_db").notes == ("a",)


def test_a_value_that_failed_is_named_with_its_reason(tmp_path):
    run = make_run(tmp_path)
    cell = cell_id("s2q", "w4a6")
    broken = tuple(
        dataclasses.replace(r, value=None, status=Status.ERROR, detail="latents are not finite")
        if r.cell == cell and r.metric == "latent_error"
        else r
        for r in run.records
    )
    table = build_table(dataclasses.replace(run, records=broken))
    assert entry(table, FIDELITY, cell, "latent_error").text == "error"
    assert ("a", "latent_error of s2q w4a6: error: latents are not finite") in table.notes


def test_a_metric_skipped_everywhere_has_no_column_but_a_remark(tmp_path):
    table = build_table(make_run(tmp_path))
    assert "lpips" not in [c.key for c in block(table, FIDELITY).columns]
    assert "lpips skipped: AlexNet weights are not on disk" in table.remarks


def test_an_unknown_metric_appears_under_its_own_name(tmp_path):
    run = make_run(tmp_path)
    extra = tuple(
        dataclasses.replace(r, metric="flow_error", better="lower")
        for r in run.records
        if r.metric == "latent_error"
    )
    table = build_table(dataclasses.replace(run, records=run.records + extra))
    found = block(table, OTHER)
    assert [c.title for c in found.columns] == ["flow error"]
    assert entry(table, OTHER, cell_id("s2q", "w4a6"), "flow_error").mark == "best"


def test_one_prompt_has_a_mean_without_interval_or_mark(tmp_path):
    table = build_table(make_run(tmp_path, prompts=PROMPTS[:1]))
    found = entry(table, FIDELITY, cell_id("s2q", "w4a6"), "psnr_db")
    assert (found.low, found.high, found.mark) == (None, None, "")


def test_chosen_metrics_are_the_only_columns(tmp_path):
    table = build_table(make_run(tmp_path), metrics=["psnr_db", "artifact_bytes"])
    assert [[c.key for c in b.columns] for b in table.blocks] == [["psnr_db"], ["artifact_bytes"]]


def test_an_unknown_metric_name_is_an_error_with_the_nearest_one(tmp_path):
    with pytest.raises(UsageError, match="did you mean psnr_db"):
        build_table(make_run(tmp_path), metrics=["psnr"])


def test_two_models_have_blocks_of_their_own(tmp_path):
    table = build_table(make_run(tmp_path, models=("shapes", "shapes-outliers")))
    assert [b.model for b in table.blocks] == ["shapes"] * 3 + ["shapes-outliers"] * 3


@pytest.mark.parametrize(
    ("missing", "value"),
    [
        ("suites", {}),
        ("cohort", {}),
        ("provenance", {}),
        ("id", ""),
        ("suites", {"shapes-eval": {"role": "eval", "version": 1}}),
    ],
)
def test_a_table_cannot_be_built_without_provenance(tmp_path, missing, value):
    run = dataclasses.replace(make_run(tmp_path), **{missing: value})
    with pytest.raises(HarnessError):
        build_table(run)


def test_provenance_names_suite_digest_prompts_seeds_cohort_version_and_run(tmp_path):
    run = make_run(tmp_path / "abc123", seeds=(0, 1))
    told = "\n".join(build_table(run).provenance.lines())
    for part in (
        "run abc123",
        "vdit-quant-harness 0.1.0",
        "16 prompts x 2 seeds",
        "shapes-eval v1 (eval, sha256 0123456789ab)",
        "shapes-calib v1 (calibration",
        "device cpu, torch 2.13.0",
    ):
        assert part in told.replace("diffusers 0.42.1, ", "").replace("dtype float32, ", "")


def test_cohorts_of_several_models_are_told_apart_only_where_they_differ(tmp_path):
    same = {"a": {"device": "cpu"}, "b": {"device": "cpu"}}
    other = {"a": {"device": "cpu"}, "b": {"device": "H100"}}
    run = make_run(tmp_path)

    def told(cohort):
        return build_table(dataclasses.replace(run, cohort=cohort)).provenance.cohort

    assert told(same) == "device cpu"
    assert told(other) == "a: device cpu; b: device H100"


def test_a_run_read_back_gives_the_same_table(tmp_path):
    run = make_run(tmp_path)
    assert build_table(load_run(tmp_path)) == build_table(run)


def test_every_number_in_the_table_is_finite(tmp_path):
    for found in build_table(make_run(tmp_path)).blocks:
        for line in found.lines:
            for e in line.entries:
                assert all(v is None or math.isfinite(v) for v in (e.value, e.low, e.high))


def column(tmp_path, metric, kind=col.MEAN):
    run = make_run(tmp_path)
    columns = col.columns_of(col.known_metrics(run), Values.of(run))
    return next(c for c in columns if c.metric == metric and c.kind == kind)


def test_significant_digits_keep_their_zeros(tmp_path):
    error = column(tmp_path, "latent_error")
    assert [error.number(v) for v in (0.004, 0.0126, 123.4, 2e-10)] == [
        "0.00400",
        "0.0126",
        "123",
        "2.00e-10",
    ]


def test_numbers_are_never_minus_zero_and_differences_carry_a_sign(tmp_path):
    points = column(tmp_path, "oracle_all", col.DELTA)
    assert points.number(-0.00001) == "0.0"
    assert points.number(0.125) == "+12.5"
    assert points.number(-0.125) == "-12.5"


def test_a_hub_model_is_named_with_the_commit_it_was_locked_to(tmp_path):
    model = {"name": "latte", "repo": "maxin-cn/Latte-1", "revision": "0123456789abcdef" * 2}
    asked = {**model, "locked": "locked at first use, 2026-11-20"}
    run = make_run(tmp_path / "run", experiment={"models": [asked, {**model, "locked": ""}]})
    told = build_table(run).provenance.lines()
    assert told[-1] == (
        "model latte: maxin-cn/Latte-1 at 0123456789ab, locked at first use, 2026-11-20"
    )
    assert not any(line.startswith("model") for line in told[:-1])


def with_executions(run):
    """The run with what computed each row: s2q by a kernel, rtn by none, the others unknown."""
    s2q, rtn = cell_id("s2q", "w4a6"), cell_id("rtn", "w4a6")
    told = {
        s2q: {
            "execution": "kernel:onednn-int8",
            "linears": {"kernel:onednn-int8, int8 lanes": 36, "dequantize": 12},
        },
        rtn: {
            "execution": "simulated",
            "linears": {"simulated": 36, "dequantize": 12},
            "reasons": {"exact: weights have a step for each 16 input channels": 30},
        },
    }
    cells = tuple(dataclasses.replace(c, **told.get(c.id, {})) for c in run.cells)
    like = next(r for r in run.records if r.cell == s2q and r.metric == "weights_quantized")
    counts = tuple(
        dataclasses.replace(like, cell=cell, metric="kernel_linears", value=value)
        for cell, value in ((s2q, 36.0), (rtn, 0.0))
    )
    return dataclasses.replace(run, cells=cells, records=(*run.records, *counts))


def test_what_computed_a_row_is_a_column_and_a_note(tmp_path):
    table = build_table(with_executions(make_run(tmp_path)))
    s2q, rtn = cell_id("s2q", "w4a6"), cell_id("rtn", "w4a6")
    assert entry(table, COST, s2q, "kernel_linears").text == "onednn-int8"
    assert entry(table, COST, s2q, "kernel_linears").value == 36
    assert entry(table, COST, rtn, "kernel_linears").text == "simulated"
    assert entry(table, COST, cell_id("fp", "fp"), "kernel_linears").text in ("", "-")
    assert (
        "s2q w4a6: 36 linears on onednn-int8, int8 lanes; 12 with 16-bit activations expand their "
        "weights" in table.remarks
    )
    assert (
        "rtn w4a6: linears without a kernel, 30 of 36: exact: weights have a step for each 16 "
        "input channels" in table.remarks
    )


def test_kernels_that_are_off_need_no_note_and_a_run_that_knows_of_none_no_column(tmp_path):
    run = make_run(tmp_path)
    assert "kernel_linears" not in [c.key for c in block(build_table(run), COST).columns]
    off = {"linears": {"simulated": 36}, "reasons": {OFF_REASON: 36}}
    cells = tuple(dataclasses.replace(c, **({} if c.unquantized else off)) for c in run.cells)
    remarks = build_table(dataclasses.replace(run, cells=cells)).remarks
    assert not any("kernel" in remark for remark in remarks)
