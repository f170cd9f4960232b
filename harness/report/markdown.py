"""The table as Markdown (GitHub flavour)."""

from __future__ import annotations

from harness.report.table import ABSENT, BEST, DIFFERS, SECOND, Block, Line, Parts, Table, parts
from harness.report.terminal import footer


def markdown(table: Table) -> str:
    """Write the table; best is bold, second underlined."""
    chunks = []
    model = ""
    for block in table.blocks:
        if block.model != model:
            model = block.model
            chunks.append(f"**{_escape(model)}**")
        chunks.append(_block(block))
    chunks.append("\n".join(f"- {_escape(line)}" for line in footer(table)))
    return "\n\n".join(chunks) + "\n"


def _block(block: Block) -> str:
    heads = [block.title, "bits", *(c.head.replace("\n", " ") for _, c in block.visible())]
    rules = [":--", ":--", *("--:" for _ in block.visible())]
    rows = [_row([_escape(h) for h in heads]), _row(rules)]
    rows += [_row(_cells(block, line)) for line in block.lines]
    return "\n".join(rows)


def _cells(block: Block, line: Line) -> list[str]:
    bits = ABSENT if line.unquantized else line.bits
    entries = (_entry(parts(column, line.entries[i])) for i, column in block.visible())
    return [_escape(line.label), _escape(bits), *entries]


def _entry(part: Parts) -> str:
    text = _escape(part.main)
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


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escape(text: str) -> str:
    """Keep a name from being read as Markdown or HTML, and a row on one line."""
    for mark in "\\`*_|[]":
        text = text.replace(mark, f"\\{mark}")
    return text.replace("<", "&lt;").replace(">", "&gt;").replace("\n", " ").replace("\r", " ")
