"""Images in [-1, 1] to pixels, sheets and labelled tables. Needs Pillow."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

__all__ = ["Cell", "comparison", "pixels", "png", "sheet"]

INK, FAINT, PAPER = (24, 24, 24), (110, 110, 110), (255, 255, 255)
TEXT_SIZE, GAP, MARGIN = 14, 2, 14
MIN_SIDE = 48  # small images are enlarged to at least this, by whole factors, so that one can see them


def pixels(images: Tensor) -> np.ndarray:
    """(B, C, H, W) in [-1, 1], C = 1 or 3, to uint8 (B, H, W, 3); what lies outside is clipped."""
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images must be (B, 1 or 3, H, W) to be drawn; got shape {tuple(images.shape)}")
    scaled = images.double().add(1).mul(127.5).round().clamp(0, 255)
    array: np.ndarray = scaled.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).cpu().numpy().astype(np.uint8)
    return array


def png(array: np.ndarray) -> bytes:
    """The bytes of a PNG file of one (H, W, 3) image."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="png")
    return buffer.getvalue()


def sheet(array: np.ndarray, columns: int | None = None) -> np.ndarray:
    """(B, H, W, 3) pixels side by side, near a square if `columns` is not given."""
    count, height, width, _ = array.shape
    columns = min(columns or math.ceil(math.sqrt(count)), count)
    rows = math.ceil(count / columns)
    scale = max(1, math.ceil(MIN_SIDE / min(height, width)))
    large = array.repeat(scale, axis=1).repeat(scale, axis=2)
    h, w = height * scale + GAP, width * scale + GAP
    out = np.full((rows * h - GAP, columns * w - GAP, 3), 255, np.uint8)
    for i, image in enumerate(large):
        top, left = i // columns * h, i % columns * w
        out[top : top + h - GAP, left : left + w - GAP] = image
    return out


@dataclass(frozen=True)
class Cell:
    """One solver at one budget: its picture and its figures."""

    picture: np.ndarray
    rmse: float
    seconds: float
    calls: int


def comparison(title: str, rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[Cell]]) -> bytes:
    """Rows of labelled pictures under column titles and, beneath, the table of their figures; as a PNG."""
    font = ImageFont.load_default(TEXT_SIZE)
    line = round(TEXT_SIZE * 1.5)
    height, width, _ = cells[0][0].picture.shape
    label = max(round(font.getlength(name)) for name in (*rows, "calls")) + MARGIN
    figures = [[_figures(cell) for cell in row] for row in cells]
    column = max(width, *(round(font.getlength(text)) for row in figures for text in row)) + MARGIN
    top = MARGIN + line * 2
    table = top + len(rows) * (height + MARGIN) + line
    canvas = Image.new("RGB", (MARGIN + label + len(columns) * column, table + (len(rows) + 1) * line + MARGIN), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((MARGIN, MARGIN), title, INK, font)
    draw.text((MARGIN, table - line), "RMSE to the converged solution, seconds, calls made", FAINT, font)
    for j, name in enumerate(columns):
        left = MARGIN + label + j * column
        draw.text((left, MARGIN + line), name, INK, font)
        draw.text((left, table), name, FAINT, font)
    for i, name in enumerate(rows):
        y = top + i * (height + MARGIN)
        draw.text((MARGIN, y + height // 2 - TEXT_SIZE), name, INK, font)
        draw.text((MARGIN, table + (i + 1) * line), name, INK, font)
        for j, cell in enumerate(cells[i]):
            left = MARGIN + label + j * column
            canvas.paste(Image.fromarray(cell.picture), (left, y))
            draw.text((left, table + (i + 1) * line), figures[i][j], INK, font)
    return png(np.asarray(canvas))


def _figures(cell: Cell) -> str:
    return f"{cell.rmse:.4f}   {cell.seconds:.2f} s   {cell.calls}"
