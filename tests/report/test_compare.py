from __future__ import annotations

import dataclasses

import pytest

from harness.errors import HarnessError, UsageError
from harness.report.compare import BETTER, DIFFERS, TIE, WORSE, compare
from tests.report.example import PROMPTS, cell_id, make_run


def rows(found, metric):
    return {(d.row, d.bits): d for d in found if d.metric == metric}


def test_every_other_row_of_the_same_width_is_held_against_the_reference(tmp_path):
    found = compare(make_run(tmp_path), reference="s2q", bits="w4a6", metrics=["psnr_db"])
    assert {d.row for d in found} == {"rtn", "rtn-gptq", "ptq4dit"}
    assert {d.bits for d in found} == {"w4a6"}
    assert {d.verdict for d in found} == {WORSE}


def test_each_width_of_the_reference_is_a_family_of_its_own(tmp_path):
    found = rows(compare(make_run(tmp_path), reference="s2q"), "psnr_db")
    assert set(found) == {
        ("rtn", "w4a6"),
        ("rtn-gptq", "w4a6"),
        ("ptq4dit", "w4a6"),
        ("rtn", "w4a4"),
    }
    assert found["rtn", "w4a4"].test.p_holm == found["rtn", "w4a4"].test.p
    assert found["rtn", "w4a6"].test.p_holm > found["rtn", "w4a6"].test.p


def test_the_difference_is_row_minus_reference(tmp_path):
    found = rows(compare(make_run(tmp_path), reference="ptq4dit"), "psnr_db")
    assert found["s2q", "w4a6"].test.difference.mean == pytest.approx(6.0, abs=0.5)
    assert found["s2q", "w4a6"].verdict == BETTER


def test_less_latent_error_is_better(tmp_path):
    found = rows(compare(make_run(tmp_path), reference="ptq4dit"), "latent_error")
    assert found["s2q", "w4a6"].test.difference.mean < 0
    assert found["s2q", "w4a6"].verdict == BETTER


def test_a_metric_that_a_broken_clip_can_lead_has_no_winner(tmp_path):
    run = make_run(tmp_path)
    records = tuple(dataclasses.replace(r, better="none") for r in run.records)
    found = rows(compare(dataclasses.replace(run, records=records), reference="ptq4dit"), "psnr_db")
    assert found["s2q", "w4a6"].verdict == DIFFERS


def test_rows_within_their_noise_are_a_tie(tmp_path):
    found = rows(compare(make_run(tmp_path), reference="rtn"), "psnr_db")
    assert found["rtn-gptq", "w4a6"].verdict == TIE


def test_fp_is_met_where_it_has_the_metric(tmp_path):
    found = compare(make_run(tmp_path), reference="s2q", bits="w4a6")
    assert ("fp", "fp") in rows(found, "margin_all")
    assert ("fp", "fp") not in rows(found, "psnr_db")


def test_an_unquantized_reference_meets_rows_of_all_widths(tmp_path):
    found = rows(compare(make_run(tmp_path), reference="fp", metrics=["oracle_all"]), "oracle_all")
    assert ("s2q", "w4a4") in found
    assert ("s2q", "w4a6") in found
    assert found["control", "fp"].verdict == TIE


def test_only_common_prompts_count(tmp_path):
    run = make_run(tmp_path)
    lost = tuple(
        r for r in run.records if not (r.cell == cell_id("rtn", "w4a6") and r.prompt == PROMPTS[0])
    )
    found = rows(compare(dataclasses.replace(run, records=lost), reference="s2q"), "psnr_db")
    assert found["rtn", "w4a6"].test.difference.n == len(PROMPTS) - 1
    assert found["ptq4dit", "w4a6"].test.difference.n == len(PROMPTS)


def test_one_prompt_gives_a_mean_without_interval_and_no_verdict(tmp_path):
    found = compare(make_run(tmp_path, prompts=PROMPTS[:1]), reference="s2q")
    assert all(d.test.difference.low is None and d.verdict == TIE for d in found)


def test_two_runs_of_one_suite_and_cohort_can_be_compared(tmp_path):
    first = make_run(tmp_path / "first")
    second = make_run(tmp_path / "second", offset=2.0)
    found = rows(compare(first, reference="s2q", bits="w4a6", other=second), "psnr_db")
    mine = found["s2q (second)", "w4a6"]
    assert mine.test.difference.mean == pytest.approx(2.0)
    assert mine.verdict == BETTER


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("cohort", {"device": "NVIDIA H100", "torch": "2.13.0"}),
        ("suites", {"shapes-eval": {"version": 2, "digest": "sha256:ff", "role": "eval"}}),
    ],
)
def test_runs_of_other_suites_or_cohorts_are_refused(tmp_path, part, value):
    first = make_run(tmp_path / "first")
    second = make_run(tmp_path / "second", **{part: value})
    with pytest.raises(HarnessError, match=r"different (cohorts|prompt suites)") as refused:
        compare(first, reference="s2q", other=second)
    assert str(refused.value).count("\n") == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"reference": "s2"},
        {"reference": "s2q", "bits": "w8a8"},
        {"reference": "s2q", "metrics": ["psnr"]},
        {"reference": "s2q", "metrics": ["artifact_bytes"]},
    ],
)
def test_unknown_names_are_usage_errors(tmp_path, wrong):
    with pytest.raises(UsageError):
        compare(make_run(tmp_path), **wrong)


def test_a_failed_row_is_left_out(tmp_path):
    run = make_run(tmp_path, failed_row=cell_id("rtn", "w4a4"))
    with pytest.raises(HarnessError, match="nothing to compare"):
        compare(run, reference="s2q", bits="w4a4", metrics=["psnr_db"])
