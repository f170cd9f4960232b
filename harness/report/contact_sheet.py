"""One picture of a run: rows are methods, columns are prompts.

Each place shows the first, the middle and the last frame.
"""

from __future__ import annotations

import io
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from harness.errors import HarnessError
from harness.report.provenance import Provenance
from harness.report.values import Values

if TYPE_CHECKING:
    from pathlib import Path

    from harness.store.records import CellOutcome, Run

COLUMNS = 16  # more prompts than this make a sheet nobody can open
_SMALLEST, _LARGEST = 64, 96  # height of a frame on the sheet, pixels
_GAP, _LABEL, _FONT = 4, 150, 12
_PAPER, _INK, _EMPTY = (255, 255, 255), (20, 20, 20), (225, 225, 225)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Grid:
    """Sizes in pixels: a frame, a place of three frames, the caption line above."""

    frame: tuple[int, int]
    caption: int

    @property
    def place(self) -> tuple[int, int]:
        return 3 * self.frame[0], self.frame[1]

    def left(self, column: int) -> int:
        """Left edge of a column of places."""
        return _LABEL + column * (self.place[0] + 2 * _GAP)


def contact_sheet(run: Run, path: Path) -> bool:
    """Draw the sheet of the first seed's clips and write it as PNG.

    Args:
        run: The run; its clips lie at ``clips/<cell id>/<prompt id>-s<seed>.mp4`` in its folder.
        path: Where the PNG goes; replaced in one step.

    Returns:
        False where the run has no clip, and then nothing is written.
    """
    prompts, seeds = Values.of(run).clips()
    if not prompts:
        return False
    shown, seed = prompts[:COLUMNS], seeds[0]
    strips = {
        (cell.id, prompt): strip
        for cell in run.cells
        for prompt in shown
        if (strip := _strip(run.folder / "clips" / cell.id / f"{prompt}-s{seed}.mp4")) is not None
    }
    if not strips:
        return False
    sheet = _draw(run, shown, strips, f"seed {seed}, {len(shown)} of {len(prompts)} prompts")
    data = io.BytesIO()
    sheet.save(data, format="PNG", optimize=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(data.getvalue())
    temporary.replace(path)
    return True


def _strip(path: Path) -> np.ndarray | None:
    """First, middle and last frame side by side, ``[height, 3 width, 3]``; None without a clip."""
    from harness.generate.video import read

    if not path.is_file():
        return None
    frames = read(path)
    if not len(frames):
        raise HarnessError(
            f"clip '{path}' has no frame", "delete it and run the same command again"
        )
    return np.concatenate([frames[0], frames[len(frames) // 2], frames[-1]], axis=1)


def _draw(
    run: Run, prompts: list[str], strips: dict[tuple[str, str], np.ndarray], note: str
) -> Image.Image:
    texts = {
        name: text for suite in run.suites.values() for name, text in suite.get("texts", {}).items()
    }
    grid = _grid_for(next(iter(strips.values())), [texts.get(p, p) for p in prompts])
    cells = run.cells
    row = grid.place[1] + _GAP
    width = grid.left(len(prompts)) + _GAP
    texts_below = (_wrap(line, width - 2 * _GAP) for line in [note, *Provenance.of(run).lines()])
    footer = [line for text in texts_below for line in text.splitlines()]
    height = grid.caption + row * len(cells) + (_FONT + 4) * len(footer) + 3 * _GAP
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT)
    for column, prompt in enumerate(prompts):
        caption = _wrap(texts.get(prompt, prompt), grid.place[0])
        pen.multiline_text((grid.left(column), _GAP), caption, fill=_INK, font=font)
    for index, cell in enumerate(cells):
        top = grid.caption + index * row
        pen.multiline_text((_GAP, top + _GAP), _label(cell, run), fill=_INK, font=font)
        for column, prompt in enumerate(prompts):
            corner = (grid.left(column), top)
            strip = strips.get((cell.id, prompt))
            if strip is None:
                pen.rectangle(
                    (*corner, corner[0] + grid.place[0], top + grid.place[1]), fill=_EMPTY
                )
                pen.text((corner[0] + _GAP, top + _GAP), "no clip", fill=_INK, font=font)
            else:
                sheet.paste(_resize(strip, grid.place), corner)
                for edge in (grid.frame[0], 2 * grid.frame[0]):
                    x = corner[0] + edge
                    pen.line((x, top, x, top + grid.place[1] - 1), fill=_PAPER, width=2)
    for index, line in enumerate(footer):
        top = grid.caption + row * len(cells) + _GAP + index * (_FONT + 4)
        pen.text((_GAP, top), line, fill=_INK, font=font)
    return sheet


def _grid_for(strip: np.ndarray, captions: list[str]) -> _Grid:
    """Sizes from the first clip: small ones grow by a whole factor, large ones shrink."""
    height, width = strip.shape[0], strip.shape[1] // 3
    scale = min(1.0, _LARGEST / height) if height >= _SMALLEST else float(-(-_SMALLEST // height))
    frame = (max(1, round(width * scale)), max(1, round(height * scale)))
    lines = max(_wrap(text, 3 * frame[0]).count("\n") + 1 for text in captions)
    return _Grid(frame=frame, caption=lines * (_FONT + 4) + 2 * _GAP)


def _resize(strip: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Fit a strip into its place: nearest when enlarging, so that pixels stay visible."""
    picture = Image.fromarray(strip)
    kind = Image.Resampling.NEAREST if size[1] >= picture.height else Image.Resampling.LANCZOS
    return picture.resize(size, kind)


def _wrap(text: str, width: int) -> str:
    """Break a caption to about ``width`` pixels."""
    return textwrap.fill(text, max(10, int(width / (_FONT * 0.52))))


def _label(cell: CellOutcome, run: Run) -> str:
    """Method and bits; the model too where the run has several; the status of a failed row."""
    lines = [cell.label if cell.unquantized else f"{cell.label} {cell.bits}"]
    if len({c.model for c in run.cells}) > 1:
        lines.insert(0, cell.model)
    if cell.status != "ok":
        lines.append(str(cell.status))
    return "\n".join(textwrap.fill(line, 22) for line in lines)
