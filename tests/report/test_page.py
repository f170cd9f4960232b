"""The results page: complete where the run is, honest where it is not, and kind to handwriting."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from harness.cli.report import report
from harness.errors import UsageError
from harness.report.page import BEGIN, END, page
from harness.report.values import Values
from harness.spec import Status
from harness.store.records import Run, write_run
from tests.report.example import cell_id, make_run

if TYPE_CHECKING:
    from pathlib import Path


def with_reports(run: Run, reports: dict[str, dict[str, object]]) -> Run:
    cells = tuple(dataclasses.replace(c, report=reports.get(c.id)) for c in run.cells)
    return dataclasses.replace(run, cells=cells)


def unfinished(run: Run, missing: str) -> Run:
    cells = tuple(
        dataclasses.replace(c, status=Status.SKIPPED, detail="not made yet: 5 of 16 clips")
        if c.id == missing
        else c
        for c in run.cells
    )
    records = tuple(r for r in run.records if r.cell != missing)
    return dataclasses.replace(run, cells=cells, records=records)


def section(text: str, title: str) -> str:
    return text.partition(f"### {title}\n")[2].partition("\n## ")[0].partition("\n### ")[0]


def test_every_width_has_a_table_with_the_reference_on_top(tmp_path: Path) -> None:
    text = page(make_run(tmp_path, models=("shapes", "other")), before="")
    for model in ("shapes", "other"):
        for bits, labels in (("w4a6", ["fp", "control", "rtn", "rtn-gptq"]), ("w4a4", ["fp"])):
            lines = [x for x in section(text, f"{model}, {bits}").splitlines() if x[:1] == "|"]
            assert [x.split("|")[1].strip() for x in lines[2 : 2 + len(labels)]] == labels
    head = section(text, "shapes, w4a6").strip().splitlines()[0]
    for column in ("all right %", "margin", "PSNR dB", "SSIM", "W bits", "A bits", "size MB"):
        assert column in head
    assert "4.31 | 6.75 | 4.10 | 3.58x |" in section(text, "shapes, w4a6")


def test_a_missing_an_unsupported_and_a_failed_row_are_named_with_the_reason(
    tmp_path: Path,
) -> None:
    run = unfinished(make_run(tmp_path, failed_row="shapes--rtn--w4a4"), "shapes--s2q--w4a6")
    text = page(run, before="")
    assert "Missing: s2q: not made yet: 5 of 16 clips" in section(text, "shapes, w4a6")
    assert "Failed (oom): rtn: worker used more than 24 GiB" in section(text, "shapes, w4a4")
    assert "| s2q |" not in section(text, "shapes, w4a6")
    assert "**1 not made yet**" in text


def test_a_run_with_nothing_in_it_yet_is_a_page_without_tables(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for cell in run.cells:
        run = unfinished(run, cell.id)
    text = page(run, before="")
    assert "No row of this width is finished." in section(text, "shapes, w4a4")
    assert "can resolve" not in text


def test_notes_are_numbered_once_and_stand_beside_their_rows(tmp_path: Path) -> None:
    said = {"notes": ["trained for 3 epochs"], "mixed": "FFN at 8 bits", "footprint": {}}
    rows = [cell_id("s2q", "w4a6"), cell_id("s2q", "w4a4")]
    text = page(with_reports(make_run(tmp_path), dict.fromkeys(rows, said)), before="")
    assert "1. mixed widths: FFN at 8 bits\n2. trained for 3 epochs\n" in text
    for bits in ("w4a6", "w4a4"):
        row = next(x for x in section(text, f"shapes, {bits}").splitlines() if "| s2q |" in x)
        assert row.endswith("| 1, 2 |")


def test_the_steps_of_a_policy_are_counted_over_the_clips(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    row = cell_id("s2q", "w4a6")
    like = next(r for r in run.records if r.cell == row and r.prompt)
    extra = [
        dataclasses.replace(like, metric=f"steps_form_{form}", prompt=prompt, value=float(steps))
        for prompt, counts in (("p0", (14, 6)), ("p1", (12, 8)))
        for form, steps in enumerate(counts)
    ]
    facts = {row: {"footprint": {"avg_a_bits_by_choice": [4.01, 8.0]}}}
    run = with_reports(dataclasses.replace(run, records=(*run.records, *extra)), facts)
    text = page(run, before="")
    assert (
        "of 20 steps of a clip, mean of 2 clips: 13.0 with activations at 4.01 bits (12 to 14 a "
        "clip); 7.0 with activations at 8.00 bits (6 to 8 a clip)"
    ) in text


def test_what_was_written_between_the_marks_survives(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    target = tmp_path / "docs" / "results.md"
    write_run(run)
    command = [str(run.folder), "--page", str(target)]
    assert CliRunner().invoke(report, command, catch_exceptions=False).exit_code == 0
    first = target.read_text()
    start, _, rest = first.partition(BEGIN)
    mine = "S2Q is ahead.\n\nBecause | of <this>."
    target.write_text(start + "an old number" + BEGIN + f"\n{mine}\n" + END + rest.split(END)[1])
    CliRunner().invoke(report, command, catch_exceptions=False)
    again = target.read_text()
    assert f"{BEGIN}\n{mine}\n{END}" in again
    assert "an old number" not in again
    assert again.partition(BEGIN)[0] == start
    assert again.partition(END)[2] == first.partition(END)[2]


@pytest.mark.parametrize("text", ["my notes", f"{END} x {BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_a_file_without_one_pair_of_marks_is_not_overwritten(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="not overwritten"):
        page(make_run(tmp_path), before=text)


def test_the_header_says_command_machine_and_n(tmp_path: Path) -> None:
    facts = {
        "harness": "0.1.0",
        "at": "2026-11-20T23:59:00+00:00",
        "command": ["harness", "run", "--config", "my file.toml"],
        "machine": {"cpu": "A CPU", "cores": 2, "gpus": ["A GPU"]},
    }
    text = page(make_run(tmp_path, provenance=facts), before="")
    assert "`harness run --config 'my file.toml'`" in text
    assert "A CPU, 2 cores; A GPU" in text
    assert "| n | 16 prompts, 1 seed |" in text


def test_what_n_can_resolve_is_the_formula_on_the_paired_differences(tmp_path: Path) -> None:
    import itertools
    import statistics

    from scipy.stats import t

    run = make_run(tmp_path)
    values = Values.of(run)
    cells = [c.id for c in run.cells if c.bits == "w4a6"]
    least = []
    for a, b in itertools.combinations(cells, 2):
        mine, theirs = values.by_prompt(a, "psnr_db"), values.by_prompt(b, "psnr_db")
        spread = statistics.stdev(mine[p] - theirs[p] for p in mine)
        least.append((t.ppf(0.975, 15) + t.ppf(0.8, 15)) * spread / 4)
    row = next(
        x for x in page(run, before="").splitlines() if x.startswith("| shapes | w4a6 | 6 |")
    )
    assert f"| {statistics.median(least):.2f} ({max(least):.2f}) |" in row
