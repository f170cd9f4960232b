r"""The table as LaTeX: booktabs and multirow, a document that compiles by itself.

For a paper, copy a ``tabular`` out of it; the preamble says which packages it needs.
"""

from __future__ import annotations

import re
import unicodedata

from harness.report.table import ABSENT, BEST, DIFFERS, SECOND, Block, EntryText, Line, Table, parts
from harness.report.terminal import footer

_PREAMBLE = r"""% Compiles by itself; a tabular copied out needs booktabs, multirow, graphicx.
\documentclass[10pt]{article}
\usepackage{booktabs}
\usepackage{multirow}
\usepackage{graphicx}
\usepackage[a4paper,landscape,margin=12mm]{geometry}
\setlength{\parindent}{0pt}
\pagestyle{empty}
\begin{document}
\sffamily\small
"""
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    '"': "''",
    "±": r"$\pm$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "—": "---",
    "–": "--",
    "\n": " ",
}


def latex(table: Table) -> str:
    """Write the document: a tabular for each block, footnotes, provenance."""
    chunks = [_PREAMBLE]
    model = ""
    for block in table.blocks:
        if block.model != model:
            model = block.model
            chunks.append(rf"\textbf{{{escape(model)}}}\par\medskip")
        chunks.append(rf"\textit{{{escape(block.title)}}}\par\smallskip")
        chunks.append(_tabular(block))
    chunks.append(r"{\footnotesize\raggedright")
    chunks += [rf"{escape(line)}\par" for line in footer(table)]
    chunks.append("}")
    chunks.append(r"\end{document}")
    return "\n".join(chunks) + "\n"


def escape(text: str) -> str:
    """Write any text for plain pdflatex; a letter it lacks loses its accent or becomes ``?``."""
    found = []
    for char in text:
        if char in _SPECIAL:
            found.append(_SPECIAL[char])
        else:
            plain = unicodedata.normalize("NFKD", char).encode("ascii", "ignore").decode()
            found.append(plain if char.isprintable() and plain else "?")
    return "".join(found)


def _tabular(block: Block) -> str:
    """One block, shrunk to the line only where it is wider."""
    columns = [c for _, c in block.visible()]
    heads = [_head(c.head) for c in columns]
    lines = [
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{ll{'r' * len(columns)}}}",
        r"\toprule",
        " & ".join(["bits", "method", *heads]) + r" \\",
    ]
    for group in block.groups():
        lines.append(r"\midrule")
        bits = ABSENT if group[0].unquantized else group[0].bits
        for line in group:
            first = rf"\multirow{{{len(group)}}}{{*}}{{{escape(bits)}}}" if line is group[0] else ""
            lines.append(" & ".join([first, *_cells(block, line)]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}}\par\bigskip"]
    return "\n".join(lines)


def _head(text: str) -> str:
    """A head of one or two lines."""
    if "\n" not in text:
        return escape(text)
    rows = r" \\ ".join(escape(part) for part in text.split("\n"))
    return rf"\begin{{tabular}}[b]{{@{{}}r@{{}}}} {rows} \end{{tabular}}"


def _cells(block: Block, line: Line) -> list[str]:
    entries = (_entry(parts(column, line.entries[i])) for i, column in block.visible())
    return [escape(line.label), *entries]


def _entry(part: EntryText) -> str:
    text = _number(part.main)
    if part.mark == BEST:
        text = rf"\textbf{{{text}}}"
    elif part.mark == SECOND:
        text = rf"\underline{{{text}}}"
    elif part.mark == DIFFERS:
        text += r"\textsuperscript{*}"
    if part.spread:
        text += f" {escape(part.spread)}"
    if part.interval:
        text += rf" {{\scriptsize {_number(part.interval)}}}"
    return text + "".join(rf"\textsuperscript{{{escape(n)}}}" for n in part.notes)


def _number(text: str) -> str:
    """Numbers with a minus instead of a hyphen."""
    return re.sub(r"-(?=\d)", "$-$", escape(text))
