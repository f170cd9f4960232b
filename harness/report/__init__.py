"""From records to what people read: one table, several renderers, a contact sheet."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

CONTACT_SHEET = "contact_sheet.png"


def render_run(folder: Path, console: Console) -> None:
    """Print the table of a run and write it into the run folder.

    Writes ``table.csv``, ``table.md``, ``table.tex`` and, where there are clips,
    ``contact_sheet.png``.

    Args:
        folder: Run folder with ``run.json`` and ``records.jsonl``.
        console: Where the table is printed.

    Raises:
        HarnessError: The folder is not a run, or lacks provenance.
    """
    from harness.report.build import build_table
    from harness.report.contact_sheet import contact_sheet
    from harness.report.csv import comma_separated
    from harness.report.latex import latex
    from harness.report.markdown import markdown
    from harness.report.terminal import print_table
    from harness.store.records import load_run
    from harness.store.store import replace_file

    run = load_run(folder)
    table = build_table(run)
    for name, text in (
        ("table.csv", comma_separated(table)),
        ("table.md", markdown(table)),
        ("table.tex", latex(table)),
    ):
        replace_file(folder / name, text)
    contact_sheet(run, folder / CONTACT_SHEET)
    print_table(table, console)
