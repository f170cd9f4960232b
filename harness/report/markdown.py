"""The table as Markdown (GitHub flavour)."""

from __future__ import annotations

from harness.report.table import ABSENT, BEST, DIFFERS, SECOND, Block, EntryText, Line, Table, parts
from harness.report.terminal import footer


def markdown(table: Table) -> str:
    """Write the table; best is bold, second underlined."""
    chunks = []
    model = ""
    for block in table.blocks:
        if block.model != model:
            model = block.model
            chunks.append(f"**{escape(model)}**")
        chunks.append(_block(block))
    chunks.append("\n".join(f"- {escape(line)}" for line in footer(table)))
    return "\n\n".join(chunks) + "\n"


def _block(block: Block) -> str:
    heads = [block.title, "bits", *(c.head.replace("\n", " ") for _, c in block.visible())]
    rules = [":--", ":--", *("--:" for _ in block.visible())]
    rows = [row_text([escape(h) for h in heads]), row_text(rules)]
    rows += [row_text(_cells(block, line)) for line in block.lines]
    return "\n".join(rows)


def _cells(block: Block, line: Line) -> list[str]:
    bits = ABSENT if line.unquantized else line.bits
    entries = (entry_text(parts(column, line.entries[i])) for i, column in block.visible())
    return [escape(line.label), escape(bits), *entries]


def entry_text(part: EntryText) -> str:
    """An entry with its mark, spread, interval and footnotes."""
    text = escape(part.main)
    if part.mark == BEST:
        text = f"**{text}**"
    elif part.mark == SECOND:
        text = f"<u>{text}</u>"
    elif part.mark == DIFFERS:
        text += "\\*"
    if part.spread:
        text += f" {part.spread}"
    if part.interval:
        text += f" <sub>{part.interval}</sub>"
    return text + "".join(f" <sup>{letter}</sup>" for letter in part.notes)


def row_text(cells: list[str]) -> str:
    """A row of a table; the cells are escaped already."""
    return f"| {' | '.join(cells)} |"


def escape(text: str) -> str:
    """Keep a name from being read as Markdown or HTML, and a row on one line."""
    for mark in "\\`*_|[]":
        text = text.replace(mark, f"\\{mark}")
    return text.replace("<", "&lt;").replace(">", "&gt;").replace("\n", " ").replace("\r", " ")
