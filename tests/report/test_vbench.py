"""VBench's block of the table: order, scale, reading, what is hidden."""

from __future__ import annotations

import csv
import dataclasses
import io

import numpy as np
import pytest
from rich.console import Console

from harness.report.build import build_table
from harness.report.csv import comma_separated
from harness.report.latex import latex
from harness.report.markdown import markdown
from harness.report.terminal import footer, print_table
from harness.spec import Record, Status
from harness.vbench.dimensions import CLOSENESS, EIGHT
from tests.report.example import PROMPTS, cell_id, make_run

SCORER = "vbench 0.1.5, weights {}, some processor, float32"
FLICKER = "temporal_flickering_unfiltered"
REMARK = "scene skipped: weights are not in /w: harness fetch vbench-weights --dimension scene"


def record(run, cell, metric, value, prompt="", **more):
    facts = {"status": Status.OK, "unit": "ratio", "better": "higher", "seed": 0 if prompt else -1}
    return Record(
        run=run.id,
        cell=cell.id,
        model=cell.model,
        method=cell.method,
        bits=cell.bits,
        suite=cell.suite,
        metric=metric,
        prompt=prompt,
        value=value,
        **(facts | more),
    )


def judged(folder, official=None, lost=()):
    """A run with the seven dimensions, flickering and what else a test asks for."""
    run = make_run(folder, prompts=PROMPTS[:6])
    found = list(run.records)
    for index, cell in enumerate(run.cells):
        rng = np.random.default_rng(index)
        for place, metric in enumerate(name for name in (*EIGHT, FLICKER) if name != "scene"):
            scorer = SCORER.format(f"{place:012x}")
            level = 0.9 - 0.05 * index + 0.005 * place
            values = level + rng.normal(0, 0.01, 6)
            if (metric, cell.label) in lost:
                off = {"status": Status.OOM, "detail": "needs 80 GB", "scorer": ""}
                found += [record(run, cell, metric, None, p, **off) for p in PROMPTS[:6]]
                continue
            for prompt, value in zip(PROMPTS[:6], values, strict=True):
                found.append(record(run, cell, metric, float(value), prompt, scorer=scorer))
            whole = float(np.mean(values)) + (official or {}).get(metric, 0.0)
            found.append(record(run, cell, f"official_{metric}", whole, scorer=scorer))
    told = {**run.provenance, "remarks": [REMARK]}
    return dataclasses.replace(run, records=tuple(found), provenance=told)


def block_of(table):
    (found,) = [b for b in table.blocks if b.title == "VBench"]
    return found


def shown(table):
    return [c.metric for _, c in block_of(table).visible()]


def printed(table):
    out = io.StringIO()
    print_table(table, Console(file=out, width=200, force_terminal=True, color_system=None))
    return out.getvalue()


def test_the_block_keeps_its_shape(tmp_path, snapshot):
    table = build_table(judged(tmp_path))
    assert printed(dataclasses.replace(table, blocks=(block_of(table),))) == snapshot


def test_the_block_follows_quality_in_the_order_of_the_papers(tmp_path):
    table = build_table(judged(tmp_path))
    assert [b.title for b in table.blocks][:3] == ["quality", "VBench", "fidelity to fp"]
    assert shown(table) == [*(n for n in EIGHT if n != "scene"), FLICKER]


def test_values_are_hundredths_with_two_decimals(tmp_path):
    run = judged(tmp_path)
    table = build_table(run)
    own = [r.value for r in run.records if r.metric == EIGHT[0] and r.cell == cell_id("fp", "fp")]
    assert f"{100 * np.mean(own):.2f}" in printed(table)


def test_every_renderer_has_the_block(tmp_path):
    table = build_table(judged(tmp_path))
    for text in (markdown(table), latex(table), printed(table)):
        assert "VBench" in text
        assert "imaging" in text
    (row, *_) = csv.DictReader(io.StringIO(comma_separated(table)))
    assert float(row["imaging_quality"]) == pytest.approx(0.9, abs=0.02)
    assert row["official_imaging_quality"]
    assert row["imaging_quality_n"] == "6"
    assert "imaging_quality_minus_fp" in row


def test_an_official_aggregate_is_printed_only_where_it_differs(tmp_path):
    run = judged(tmp_path, official={"motion_smoothness": 0.001, "imaging_quality": 1e-9})
    table = build_table(run)
    assert [m for m in shown(table) if m.startswith("official_")] == ["official_motion_smoothness"]
    assert any("the package's own aggregate" in line for line in footer(table))
    plain = build_table(judged(tmp_path))
    assert not any("the package's own aggregate" in line for line in footer(plain))


def test_what_a_frozen_clip_wins_has_no_best_row_and_a_word_of_warning(tmp_path):
    table = build_table(judged(tmp_path))
    marks = {
        c.metric: {line.entries[i].mark for line in block_of(table).lines}
        for i, c in block_of(table).visible()
    }
    assert "best" in marks["imaging_quality"]
    for metric in (*(name for name in EIGHT if name in CLOSENESS), FLICKER):
        assert marks[metric] == {""}
    assert sum("closer to fp is the right reading" in line for line in footer(table)) == 1


def test_the_footer_names_the_judge_and_its_weights_in_one_line(tmp_path):
    lines = [line for line in footer(build_table(judged(tmp_path))) if line.startswith("judged by")]
    assert len(lines) == 1
    assert lines[0].startswith("judged by vbench 0.1.5, some processor, float32: ")
    assert "imaging_quality (6 prompts, weights 000000000000)" in lines[0]


def test_what_is_missing_for_all_rows_is_one_remark_and_no_column(tmp_path):
    table = build_table(judged(tmp_path))
    assert footer(table).count(REMARK) == 1
    assert "scene" not in shown(table)


def test_a_value_that_failed_says_so_in_its_place(tmp_path):
    table = build_table(judged(tmp_path, lost={("dynamic_degree", "s2q")}))
    place = shown(table).index("dynamic_degree")
    entries = {
        line.label: line.entries[block_of(table).visible()[place][0]]
        for line in block_of(table).lines
    }
    assert entries["s2q"].text == "oom"
    assert entries["fp"].value is not None
    assert any("needs 80 GB" in text for _, text in table.notes)
