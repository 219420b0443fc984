"""Images in [-1, 1] to pixels, sheets and labelled tables. Needs the extra `cli`."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

try:
    from PIL import Image, ImageDraw, ImageFont, ImageOps
except ImportError as error:
    raise ImportError("pictures need Pillow: pip install 'fewstep[cli]'") from error

__all__ = [
    "OURS", "Cell", "alpha", "check_opaque", "comparison", "headed", "opened", "pixels", "png", "read", "rgb", "sheet"
]  # fmt: skip

INK, FAINT, PAPER = (24, 24, 24), (110, 110, 110), (255, 255, 255)
TEXT_SIZE, LINE, GAP, MARGIN = 15, 23, 2, 20  # pixels
MIN_SIDE, HEADED_SIDE = 64, 96  # small images are enlarged to at least this, by whole factors, so that one can see them
ONE_PICTURE = ("MPO", "PSD")  # whose frames after the first are previews or layers of it
ANEW, OURS = "copy it anew, or leave it out", "delete it, to have it made again"  # if damaged; of a run's own images
FIGURES = ("RMSE", "seconds", "calls")


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


def read(path: Path, remedy: str = ANEW) -> np.ndarray:
    """The (H, W, 3) pixels of an image file, as `opened` has it; ValueError if some of them cannot be seen."""
    return rgb(path, opened(path, remedy))


def rgb(name: Path | str, image: Image.Image) -> np.ndarray:
    """Its (H, W, 3) pixels; ValueError if it has more than these, or some of them cannot be seen."""
    _check_colours(name, image)
    check_opaque(name, image)
    return np.asarray(image.convert("RGB"))


def _check_colours(name: Path | str, image: Image.Image) -> None:
    if image.mode.startswith(("I", "F")):  # which Pillow clips
        raise ValueError(f"{name} has more than 8 bits a colour: save it with 8")
    if image.mode == "LAB":  # which Pillow does not convert
        raise ValueError(f"{name} is in Lab colours: save it in RGB")


def opened(file: Path, remedy: str = ANEW) -> Image.Image:
    """An image file, upright, as it is meant to be seen; `remedy` is for one that is damaged. ValueError if its colours
    or frames are more than what `convert` leaves of them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as found:
                frames = 1 if found.format in ONE_PICTURE else getattr(found, "n_frames", 1)
                image = ImageOps.exif_transpose(found)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{file} has too many pixels to be read ({error}): crop or resize it") from error
    except Exception as error:  # Pillow has several for a damaged file
        raise OSError(f"{file} cannot be read as an image ({error}): {remedy}") from error
    if frames > 1:
        raise ValueError(f"{file} has {frames} frames or pages: save the one to be read as an image of its own")
    _check_colours(file, image)
    return image


def alpha(image: Image.Image) -> np.ndarray:
    """(H, W), 255 where the image is opaque."""
    if not image.has_transparency_data:
        return np.full(image.size[::-1], 255)
    return np.asarray(image.convert("RGBA").getchannel("A"))


def check_opaque(file: Path | str, image: Image.Image, seen: np.ndarray | None = None) -> None:
    """Where the image is seen, by default everywhere: below what is transparent lies any colour."""
    hidden = alpha(image) < 255
    if hidden.any() if seen is None else (hidden & seen).any():
        other = "" if seen is None else ", or make its --mask white there"
        raise ValueError(f"{file} is transparent where it counts as seen: save it without transparency{other}")


def sheet(array: np.ndarray, columns: int | None = None, side: int = MIN_SIDE) -> np.ndarray:
    """(B, H, W, 3) pixels side by side, near a square if `columns` is not given."""
    count, height, width, _ = array.shape
    columns = min(columns or math.ceil(math.sqrt(count)), count)
    rows = math.ceil(count / columns)
    scale = max(1, math.ceil(side / min(height, width)))
    large = array.repeat(scale, axis=1).repeat(scale, axis=2)
    h, w = height * scale + GAP, width * scale + GAP
    out = np.full((rows * h - GAP, columns * w - GAP, 3), 255, np.uint8)
    for i, image in enumerate(large):
        top, left = i // columns * h, i % columns * w
        out[top : top + h - GAP, left : left + w - GAP] = image
    return out


def headed(array: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """(B, H, W, 3) pixels in rows of as many as there are names, which stand above the columns."""
    body = sheet(array, len(names), HEADED_SIDE)
    canvas = Image.new("RGB", (body.shape[1], LINE + body.shape[0]), PAPER)
    draw, font, width = ImageDraw.Draw(canvas), ImageFont.load_default(TEXT_SIZE), (body.shape[1] + GAP) / len(names)
    for k, name in enumerate(names):
        draw.text(((k + 1 / 2) * width, LINE / 2), name, INK, font, anchor="mm")
    canvas.paste(Image.fromarray(body), (0, LINE))
    return np.asarray(canvas)


@dataclass(frozen=True)
class Cell:
    """One solver at one budget: its picture and its figures."""

    picture: np.ndarray
    rmse: float
    seconds: float
    calls: int

    def figures(self) -> tuple[str, str, str]:
        return f"{self.rmse:.4f}", f"{self.seconds:.2f}", str(self.calls)


def comparison(
    title: str,
    budgets: Sequence[str],
    rows: Mapping[str, Sequence[Cell]],
    converged: np.ndarray,
    note: str,
) -> bytes:
    """The pictures of each solver under the budgets' names, `converged` at the end of each row; beneath, the table
    of their figures, headed by `note`. As a PNG."""
    font = ImageFont.load_default(TEXT_SIZE)

    def width_of(*texts: str) -> int:
        return max(math.ceil(font.getlength(text)) for text in texts)

    height, width, _ = converged.shape
    figures = {name: [cell.figures() for cell in cells] for name, cells in rows.items()}
    # Right edges of a cell's figures, which all stand under each other.
    every = [FIGURES, *(texts for line in figures.values() for texts in line)]
    widths = [width_of(*column) for column in zip(*every, strict=True)]
    edges = [sum(widths[: k + 1]) + k * MARGIN for k in range(len(widths))]
    label = MARGIN + width_of(*rows) + MARGIN
    column = max(width, edges[-1], width_of(*budgets, "converged")) + MARGIN
    first_row = MARGIN + 2 * LINE
    table = first_row + len(rows) * (height + MARGIN)
    body = table + 3 * LINE
    size = (
        max(label + (len(budgets) + 1) * column, MARGIN + width_of(title, note) + MARGIN),
        body + len(rows) * LINE + MARGIN,
    )
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)

    def write(x: int, y: int, text: str, ink: tuple[int, int, int] = INK, anchor: str = "lm") -> None:
        draw.text((x, y), text, ink, font, anchor=anchor)

    half = LINE // 2
    write(MARGIN, MARGIN + half, title)
    write(MARGIN, table + half, note, FAINT)
    for j, name in enumerate((*budgets, "converged")):
        left = label + j * column
        write(left, first_row - half, name)
        if j < len(budgets):
            write(left, table + LINE + half, name)
            for edge, heading in zip(edges, FIGURES, strict=True):
                write(left + edge, table + 2 * LINE + half, heading, FAINT, "rm")
    for i, (name, cells) in enumerate(rows.items()):
        top, line = first_row + i * (height + MARGIN), body + i * LINE + half
        write(MARGIN, top + height // 2, name)
        write(MARGIN, line, name)
        for j, picture in enumerate((*(cell.picture for cell in cells), converged)):
            canvas.paste(Image.fromarray(picture), (label + j * column, top))
        for j, texts in enumerate(figures[name]):
            for edge, text in zip(edges, texts, strict=True):
                write(label + j * column + edge, line, text, anchor="rm")
    return png(np.asarray(canvas))
