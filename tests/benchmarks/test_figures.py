"""The drawings of docs/figures: those that lie there are those that would be drawn, and can be read on both papers."""

import re
from xml.etree import ElementTree

import pytest

from benchmarks.figures import DOCS, DRAWINGS, INK, PAPER, rows
from benchmarks.photographs import STRIPS

TEXT, LINES = 4.5, 3.0  # contrasts that the WCAG ask for, level AA
SVG = "{http://www.w3.org/2000/svg}"
every_drawing = pytest.mark.parametrize("name", DRAWINGS)
OF_THEIR_PAGES = ["cheaper"]  # drawn with them
every_picture = pytest.mark.parametrize("name", [*DRAWINGS, *OF_THEIR_PAGES])


def luminance(colour):
    channels = (int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a, b):
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def numbers(text):
    return [float(number) for number in re.findall(r"-?\d+\.?\d*", text)]


@every_drawing
def test_it_is_what_would_be_drawn(name):
    """To the last figure of a place, which another machine may round otherwise."""
    lies, drawn = (DOCS / "figures" / f"{name}.svg").read_text(encoding="utf-8"), DRAWINGS[name]()
    assert re.sub(r"[\d.]+", "0", lies) == re.sub(r"[\d.]+", "0", drawn), "python -m benchmarks.figures draws it anew"
    assert numbers(lies) == pytest.approx(numbers(drawn), abs=0.15)


@every_picture
def test_it_says_what_it_shows_and_keeps_within_its_paper(name):
    root = ElementTree.fromstring((DOCS / "figures" / f"{name}.svg").read_text(encoding="utf-8"))
    assert len(root.findtext(f"{SVG}title").split()) > 2
    assert len(root.findtext(f"{SVG}desc").split()) > 8
    _, _, width, height = map(float, root.get("viewBox").split())
    for text in root.iter(f"{SVG}text"):
        length = 7.5 * len(text.text) * (1.15 if text.get("class") else 1)  # pixels, of wide letters
        left = float(text.get("x")) - length * {"middle": 0.5, "end": 1}.get(text.get("text-anchor"), 0)
        assert left > -8
        assert left + length < width + 8
        assert 0 < float(text.get("y")) < height


@every_picture
def test_it_can_be_read_in_light_and_in_dark(name):
    text = (DOCS / "figures" / f"{name}.svg").read_text(encoding="utf-8")
    assert [contrast(ink, paper) > TEXT for ink, paper in zip(INK, PAPER, strict=True)] == [True, True]
    assert INK[0] in text
    assert INK[1] in text.partition("prefers-color-scheme:dark")[2]
    drawn = set(re.findall(r'(?:stroke|fill)="(#\w+)"', text))
    assert drawn
    assert {colour for colour in drawn for paper in PAPER if contrast(colour, paper) < LINES} == set()


def test_every_picture_of_the_folder_is_made_by_a_command():
    made = {f"{name}.svg" for name in [*DRAWINGS, *OF_THEIR_PAGES]} | {f"{name}.png" for name in [*STRIPS, "converged"]}
    assert {path.name for path in (DOCS / "figures").iterdir()} == made


def test_a_page_without_its_table_is_told():
    with pytest.raises(ValueError, match=r"docs/levels.md has no heading 'nowhere'"):
        rows("levels.md", "nowhere")
