"""Pixels, sheets and the labelled table."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.pictures import GAP, MARGIN, MIN_SIDE, OURS, PAPER, Cell, comparison, pixels, png, read, sheet


def test_values_become_the_nearest_pixel_and_what_is_outside_is_clipped():
    values = torch.tensor([-1.0, 1.0, 0.0, -7.0, 1.001, -1 + 2 / 255, 0.5])
    got = pixels(values.expand(1, 3, 1, 7))
    assert got.dtype == np.uint8
    assert got[0, 0, :, 0].tolist() == [0, 255, 128, 0, 255, 1, 191]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_every_pixel_value_survives_a_round_trip(dtype):
    levels = torch.arange(256, dtype=torch.float64)
    images = (levels / 127.5 - 1).to(dtype).reshape(1, 1, 16, 16)
    assert np.array_equal(pixels(images)[0, ..., 0].ravel(), levels.numpy())


def test_channels_come_last():
    images = torch.stack([torch.full((4, 5), value) for value in (-1.0, 0.0, 1.0)])[None]
    got = pixels(images)
    assert got.shape == (1, 4, 5, 3)
    assert got[0, 2, 3].tolist() == [0, 128, 255]


def test_grey_images_have_three_equal_channels():
    got = pixels(torch.rand(2, 1, 4, 4) * 2 - 1)
    assert got.shape == (2, 4, 4, 3)
    assert np.array_equal(got[..., 0], got[..., 1])
    assert np.array_equal(got[..., 0], got[..., 2])


@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 2, 4, 4), (1, 4, 8, 8)])
def test_what_is_no_image_is_refused(shape):
    with pytest.raises(ValueError, match=r"images must be \(B, 1 or 3, H, W\) to be drawn; got shape"):
        pixels(torch.zeros(shape))


def test_png_is_lossless(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    (tmp_path / "a.png").write_bytes(png(image))
    assert np.array_equal(read(tmp_path / "a.png"), image)


def test_a_broken_image_is_named(tmp_path):
    content = png(np.random.default_rng(0).integers(0, 256, (50, 50, 3), np.uint8))
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(OSError, match=r"a\.png cannot be read as an image \(.*\): copy it anew, or leave it out$"):
        read(tmp_path / "a.png")
    with pytest.raises(OSError, match=r"a\.png cannot be read as an image \(.*\): delete it, to have it made again$"):
        read(tmp_path / "a.png", OURS)


def test_an_image_is_read_as_it_is_seen_or_not_at_all(tmp_path):
    Image.fromarray(np.full((4, 4), 21000, np.uint16)).save(tmp_path / "deep.png")
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("RGBA", (4, 4), (255, 0, 0, 255)).save(tmp_path / "opaque.png")
    frames = [Image.new("L", (4, 4), level) for level in (0, 255)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    turned = Image.new("RGB", (6, 4))
    turned.getexif()[0x0112] = 6  # turn by 90 degrees
    turned.save(tmp_path / "turned.jpg", exif=turned.getexif())
    told = {
        "deep.png": "more than 8 bits a colour: save it with 8",
        "clear.png": "is transparent where it counts as seen: save it without",
        "moving.gif": "has 2 frames or pages",
    }
    for name, why in told.items():
        with pytest.raises(ValueError, match=f"{name} .*{why}"):
            read(tmp_path / name)
    assert (read(tmp_path / "opaque.png") == [255, 0, 0]).all()
    assert read(tmp_path / "turned.jpg").shape == (6, 4, 3)


@pytest.mark.parametrize(
    ("count", "columns", "grid"),
    [(1, None, (1, 1)), (2, None, (1, 2)), (5, None, (2, 3)), (9, None, (3, 3)), (3, 4, (1, 3)), (8, 4, (2, 4))],
)
def test_sheet_lays_images_out_in_rows(count, columns, grid):
    images = np.random.default_rng(0).integers(0, 255, (count, MIN_SIDE, MIN_SIDE + 3, 3), np.uint8)
    got = sheet(images, columns)
    h, w = MIN_SIDE + GAP, MIN_SIDE + 3 + GAP
    assert got.shape == (grid[0] * h - GAP, grid[1] * w - GAP, 3)
    rest = np.ones(got.shape[:2], bool)
    for i, image in enumerate(images):
        top, left = i // grid[1] * h, i % grid[1] * w
        place = np.s_[top : top + MIN_SIDE, left : left + MIN_SIDE + 3]
        assert np.array_equal(got[place], image)
        rest[place] = False
    assert (got[rest] == 255).all()


@pytest.mark.parametrize(("side", "scale"), [(8, 8), (16, 4), (63, 2), (64, 1), (100, 1)])
def test_small_images_are_enlarged_by_whole_factors(side, scale):
    image = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8)
    got = sheet(image)
    assert got.shape == (side * scale, side * scale, 3)
    assert np.array_equal(got[::scale, ::scale], image[0])
    assert np.array_equal(got[scale - 1 :: scale, scale - 1 :: scale], image[0])


def drawn(names=("a", "b"), budgets=("5 calls", "10 calls"), width=100, note="note", title="title"):
    """A comparison whose pictures each have a colour of their own, and those pictures."""
    pictures = [
        [np.full((64, width, 3), (200, 10 * i, 10 * j), np.uint8) for j in range(len(budgets))]
        for i in range(len(names))
    ]
    rows = {
        name: [Cell(picture, 0.1234, 1.5, 10) for picture in line] for name, line in zip(names, pictures, strict=True)
    }
    last = np.full((64, width, 3), (0, 200, 0), np.uint8)
    content = comparison(title, budgets, rows, last, note)
    return np.asarray(Image.open(io.BytesIO(content))), pictures, last


LAYOUTS = {
    "usual": {},
    "long names": {"names": ("a-solver-with-a-very-long-name-indeed", "b"), "budgets": ("5 calls",)},
    "one of all": {"names": ("a",), "budgets": ("1 call",), "width": 64},
    "narrow pictures, wide figures": {"budgets": ("5 calls", "a budget of 10000 calls"), "width": 16},
    "long title": {"names": ("a",), "budgets": ("1 call",), "width": 64, "title": "t" * 200, "note": "n" * 200},
    "wide": {"names": tuple("abcdef"), "budgets": tuple("12345678"), "width": 262},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_picture_is_covered_and_nothing_leaves_the_canvas(layout):
    image, pictures, last = drawn(**LAYOUTS[layout])
    for line in pictures:
        for picture in line:
            assert (image == picture[0, 0]).all(-1).sum() == picture.shape[0] * picture.shape[1]
    assert (image == last[0, 0]).all(-1).sum() == len(pictures) * last.shape[0] * last.shape[1]
    inside = image[MARGIN // 2 : -MARGIN // 2, MARGIN // 2 : -MARGIN // 2]
    assert (inside != PAPER).any(-1).sum() == (image != PAPER).any(-1).sum()


def test_solvers_are_rows_and_budgets_are_columns():
    image, pictures, last = drawn(names=("a", "b", "c"))

    def corner(colour):
        return tuple(np.argwhere((image == colour).all(-1)).min(0))

    corners = np.array([[corner(picture[0, 0]) for picture in line] for line in pictures])
    tops, lefts = corners[..., 0], corners[..., 1]
    assert (tops == tops[:, :1]).all()
    assert (lefts == lefts[:1]).all()
    assert (np.diff(tops[:, 0]) > 0).all()
    assert (np.diff(lefts[0]) > 0).all()
    assert corner(last[0, 0])[1] > lefts.max()


@pytest.mark.parametrize(
    "change",
    [{"names": ("a", "c")}, {"budgets": ("5 calls", "12 calls")}, {"title": "another"}, {"note": "another"}],
    ids=str,
)
def test_names_budgets_title_and_note_are_written(change):
    image, other = drawn()[0], drawn(**change)[0]
    assert image.shape != other.shape or not np.array_equal(image, other)


@pytest.mark.parametrize("change", [{"rmse": 0.2}, {"seconds": 2.5}, {"calls": 11}], ids=str)
def test_figures_are_written_beneath(change):
    picture = np.zeros((64, 64, 3), np.uint8)
    figures = {"rmse": 0.1, "seconds": 1.5, "calls": 10}
    one, other = (
        np.asarray(Image.open(io.BytesIO(comparison("t", ["x"], {"a": [Cell(picture, **f)]}, picture, "n"))))
        for f in (figures, {**figures, **change})
    )
    changed = np.argwhere((one != other).any(-1))
    assert len(changed)
    assert changed.min(0)[0] > np.argwhere((one == 0).all(-1)).max(0)[0]
