from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from harness.report import CONTACT_SHEET, render_run
from harness.report.build import build_table
from harness.report.contact_sheet import contact_sheet
from harness.report.csv import comma_separated
from harness.report.latex import escape, latex
from harness.report.markdown import markdown
from harness.report.terminal import print_table
from tests.report.example import PROMPTS, cell_id, make_run, write_clips

NASTY = r"50% & $x_1$ #{~^} <b>*|`é 量 [bold] \end"


def printed(table, width, terminal=True):
    out = io.StringIO()
    print_table(table, Console(file=out, width=width, force_terminal=terminal, color_system=None))
    return out.getvalue()


def picture(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


@pytest.fixture
def table(tmp_path):
    return build_table(
        make_run(
            tmp_path / "run0",
            kernel_row=cell_id("s2q", "w4a6"),
            failed_row=cell_id("rtn", "w4a4"),
        )
    )


def test_the_terminal_table_keeps_its_shape(table, snapshot):
    assert printed(table, 120) == snapshot


def test_the_markdown_table_keeps_its_shape(table, snapshot):
    assert markdown(table) == snapshot


def test_the_latex_table_keeps_its_shape(table, snapshot):
    assert latex(table) == snapshot


@pytest.mark.parametrize("width", [40, 60, 80, 100, 110, 120])
def test_no_value_is_cut_off_at_any_width(table, width):
    text = printed(table, width)
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= width


def test_a_very_narrow_terminal_gets_every_column_in_pieces(table):
    text = printed(table, 60)
    for head in ("PSNR", "peak", "motion"):
        assert head in text
    assert text.count("cost") > 1


def test_intervals_go_before_numbers_do_when_the_terminal_is_narrow(table):
    assert "[" in printed(table, 120).split("fidelity")[0]
    assert "[" not in printed(table, 100).split("fidelity")[0]
    assert "-0.174*" in printed(table, 100)


def test_output_that_is_no_terminal_is_as_wide_as_it_needs(table):
    text = printed(table, 80, terminal=False)
    assert "…" not in text
    assert "32.96 [" in text


@pytest.mark.parametrize("render", [lambda t: printed(t, 300), markdown, latex, comma_separated])
def test_every_renderer_prints_the_provenance(table, render):
    text = render(table)
    for part in ("run0", "0.1.0", "0123456789ab", "cpu"):
        assert part in text


@pytest.mark.parametrize("render", [lambda t: printed(t, 300), markdown, latex])
def test_every_renderer_prints_the_failed_row_with_its_reason(table, render):
    text = render(table)
    assert "oom" in text
    assert "worker used more than 24 GiB" in text


def test_the_csv_has_full_precision_intervals_and_one_line_a_row(tmp_path):
    run = make_run(tmp_path)
    table = build_table(run)
    rows = list(csv.DictReader(io.StringIO(comma_separated(table))))
    assert len(rows) == len(run.cells)
    s2q = next(r for r in rows if (r["label"], r["bits"]) == ("s2q", "w4a6"))
    values = [
        r.value for r in run.records if r.cell == cell_id("s2q", "w4a6") and r.metric == "psnr_db"
    ]
    assert float(s2q["psnr_db"]) == np.mean(values)
    assert float(s2q["psnr_db_ci_low"]) < float(s2q["psnr_db"]) < float(s2q["psnr_db_ci_high"])
    assert s2q["psnr_db_n"] == "16"
    assert s2q["psnr_db_mark"] == "best"
    assert float(s2q["margin_all_minus_fp_p_holm"]) < 0.05
    assert float(s2q["weights_quantized"]) == 1.0


def test_the_csv_leaves_simulated_latency_empty_and_says_so(tmp_path):
    rows = csv.DictReader(io.StringIO(comma_separated(build_table(make_run(tmp_path)))))
    s2q = next(r for r in rows if r["label"] == "s2q")
    assert (s2q["execution"], s2q["step_latency_s"], s2q["step_latency_s"]) == ("simulated", "", "")


def test_the_csv_carries_footnotes(table):
    rows = csv.DictReader(io.StringIO(comma_separated(table)))
    failed = next(r for r in rows if r["status"] == "oom")
    assert failed["notes"] == "rtn w4a4: oom: worker used more than 24 GiB"


def test_markdown_sets_off_the_best_and_keeps_one_width_a_block(table):
    text = markdown(table)
    assert "**32.96** <sub>" in text
    assert "<u>27.04</u>" in text
    for chunk in text.split("\n\n"):
        rows = [line for line in chunk.splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", r)) for r in rows}) <= 1


def test_a_nasty_label_stays_text_everywhere(tmp_path):
    import dataclasses

    run = make_run(tmp_path)
    cells = tuple(
        dataclasses.replace(c, label=NASTY) if c.method == "s2q" else c for c in run.cells
    )
    table = build_table(dataclasses.replace(run, cells=cells))
    assert NASTY in printed(table, 300, terminal=False)
    assert "<b>" not in markdown(table)
    assert r"50\% \& \$x\_1\$ \#\{" in latex(table)
    rows = csv.DictReader(io.StringIO(comma_separated(table)))
    assert NASTY in {r["label"] for r in rows}


def test_latex_escapes_every_special_character():
    assert escape("é") == "e"
    assert escape("量") == "?"
    assert escape("a\\b") == r"a\textbackslash{}b"
    assert re.search(r"(?<!\\)[#%&_]", escape("#%&_")) is None


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_the_latex_document_compiles_by_itself(tmp_path):
    import dataclasses

    run = make_run(tmp_path, failed_row=cell_id("rtn", "w4a4"), models=("shapes", "sh_2"))
    cells = tuple(
        dataclasses.replace(c, label=NASTY, detail=NASTY) if c.label != "fp" else c
        for c in run.cells
    )
    path = tmp_path / "table.tex"
    path.write_text(latex(build_table(dataclasses.replace(run, cells=cells))), encoding="utf-8")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", path.name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "table.pdf").stat().st_size > 10_000
    assert "Overfull" not in done.stdout


def test_the_contact_sheet_shows_each_row_its_own_clip(tmp_path):
    run = make_run(tmp_path, prompts=PROMPTS[:2])
    write_clips(run)
    assert contact_sheet(run, tmp_path / CONTACT_SHEET)
    sheet = picture(tmp_path / CONTACT_SHEET)
    # write_clips gives row i a square with green level 20 i; JPEG-like loss stays below 12 levels
    greens = {
        int(np.abs(sheet - (220, 20 * i, 40)).max(axis=2).min()) < 12 for i in range(len(run.cells))
    }
    assert greens == {True}


def test_a_missing_clip_leaves_a_marked_place(tmp_path):
    run = make_run(tmp_path, prompts=PROMPTS[:2])
    write_clips(run)
    whole = contact_sheet(run, tmp_path / "whole.png")
    (tmp_path / "clips" / cell_id("s2q", "w4a6") / f"{PROMPTS[1]}-s0.mp4").unlink()
    assert whole
    assert contact_sheet(run, tmp_path / "less.png")
    full, less = (picture(tmp_path / name) for name in ("whole.png", "less.png"))
    assert full.shape == less.shape
    changed = np.argwhere((full != less).any(axis=2))
    # one place: three frames of 64 pixels, no more
    assert 0 < np.ptp(changed[:, 0]) <= 64
    assert 0 < np.ptp(changed[:, 1]) <= 192


def test_a_run_without_clips_has_no_contact_sheet(tmp_path):
    run = make_run(tmp_path)
    assert not contact_sheet(run, tmp_path / CONTACT_SHEET)
    assert not (tmp_path / CONTACT_SHEET).exists()


def test_rendering_a_run_prints_the_table_and_leaves_all_files(tmp_path):
    run = make_run(tmp_path, prompts=PROMPTS[:2])
    write_clips(run)
    out = io.StringIO()
    render_run(tmp_path, Console(file=out, width=120))
    assert "fidelity to fp" in out.getvalue()
    for name in ("table.csv", "table.md", "table.tex", CONTACT_SHEET):
        assert (tmp_path / name).stat().st_size > 100
