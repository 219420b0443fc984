"""`fewstep restore`: what it takes, what it writes, and how it goes on."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import fewstep as fs
from cli.commands import DONE, FAILED, INTERRUPTED, USAGE, assert_refused, content, names, record, run
from fewstep import restore as library
from fewstep.adapters import load_model
from fewstep.cli.degraded import Task, degraded
from fewstep.pictures import pixels, read
from tiny import SIDE

SHAPE = (3, SIDE, SIDE)
COLOURS = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
HOLE = np.zeros((SIDE, SIDE), np.uint8)
HOLE[2:5, 3:] = 255
SEEN = torch.from_numpy(HOLE == 0)[None].float()


@pytest.fixture
def photos(tmp_path):
    """Three images, in a folder."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, image in zip("abc", COLOURS, strict=True):
        Image.fromarray(image).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def hole(tmp_path):
    path = tmp_path / "hole.png"
    Image.fromarray(HOLE).save(path)
    return path


@pytest.fixture
def restore(model, tmp_path):
    def call(task, image, *args, n=2, nfe=2, out=tmp_path / "restored"):
        return run(
            "restore", "--model", model, "--task", task, "--image", image, "--n", n, "--nfe", nfe, "--out", out, *args
        )

    return call


def given(image):
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


def drawn(model, operator, y, seeds, **options):
    """What the library draws, in pixels."""
    loaded = load_model(model, batch=8)
    restoring = library.posterior(loaded, operator, y, noise=options.pop("noise", 0.05), **options)
    return pixels(fs.sample(restoring, fs.unit_noise(seeds, loaded.shape), nfe=2))


def test_a_run_is_restorations_by_name_and_seed_a_picture_and_a_record(restore, photos, tmp_path):
    result = restore("superres", photos, "--degrade", "--seed", 5, "--json")
    assert result.exit_code == DONE, result.stderr
    out = tmp_path / "restored"
    assert names(out) == ["SHA256SUMS", *(f"{k}-{s}.png" for k in "abc" for s in (5, 6)), "grid.png", "run.json"]
    assert json.loads(result.stdout) == {**record(out), "out": str(out)}
    assert (record(out)["status"], record(out)["images"]) == ("done", 6)
    truth = read(out / "grid.png")[-96:, -96:]  # the last of the measurement, two seeds and the truth, twelvefold
    assert np.array_equal(truth[::12, ::12], COLOURS[2])
    x = np.stack([[read(out / f"{k}-{s}.png") for s in (5, 6)] for k in "abc"]) / 127.5
    away = x - COLOURS[:, None] / 127.5
    psnr = 10 * np.log10(4 / (away**2).mean((2, 3, 4))).mean()
    assert record(out)["psnr"] == pytest.approx(psnr, abs=1e-3)
    of_mean = 10 * np.log10(4 / (away.mean(1) ** 2).mean((1, 2, 3))).mean()
    assert record(out)["psnr_of_mean"] == pytest.approx(of_mean, abs=1e-3)


def test_a_degraded_image_and_its_mask_are_restored_as_the_library_does(restore, model, photos, hole, tmp_path):
    told = restore("inpaint", photos / "b.png", "--mask", hole, "--noise", "0.1", "--method", "pigdm")
    assert told.exit_code == DONE, told.stderr
    operator = library.inpainting(SEEN, SHAPE)
    expected = drawn(model, operator, operator.A(given(COLOURS[1])), [0, 1], noise=0.1, method="pigdm")
    out = tmp_path / "restored"
    got = np.stack([read(out / f"b-{s}.png") for s in (0, 1)])
    assert np.array_equal(got, expected)
    left = ((got / 127.5 - COLOURS[1] / 127.5)[:, HOLE == 0] ** 2).mean() ** 0.5
    assert record(out)["residual"] == pytest.approx(left / 0.1, abs=1e-3)
    assert "psnr" not in record(out)


@pytest.mark.parametrize(("task", "option"), [("superres", ("--factor", 2)), ("deblur", ("--blur", 1))])
def test_the_other_tasks_too(restore, model, photos, tmp_path, task, option):
    small = tmp_path / "small.png"
    Image.fromarray(COLOURS[0][:4, :4] if task == "superres" else COLOURS[0]).save(small)
    assert restore(task, small, *option).exit_code == DONE
    operator = library.superresolution(2, SHAPE) if task == "superres" else library.deblurring(1, SHAPE)
    expected = drawn(model, operator, given(read(small)), [0, 1])
    assert np.array_equal(np.stack([read(tmp_path / "restored" / f"small-{s}.png") for s in (0, 1)]), expected)


@pytest.mark.parametrize("method", ["red-diff", "proximal"])
def test_methods_without_gradients_are_the_librarys(restore, model, photos, tmp_path, method):
    args = ("--method", method, "--blur", 1, *(("--spectrum", photos) if method == "proximal" else ()))
    told = restore("deblur", photos / "a.png", *args)
    assert told.exit_code == DONE, told.stderr
    assert "and 0 gradients each" in told.stderr
    operator, y = library.deblurring(1, SHAPE), given(COLOURS[0])
    if method == "proximal":
        spectrum = library.Spectrum.of(torch.cat([given(image) for image in COLOURS]))
        expected = drawn(model, operator, y, [0, 1], method=method, spectrum=spectrum)
    else:
        start = y.expand(2, -1, -1, -1)
        expected = pixels(
            library.red_diff(load_model(model, batch=8), operator, start, noise=0.05, seeds=[0, 1], nfe=2)
        )
    assert np.array_equal(np.stack([read(tmp_path / "restored" / f"a-{s}.png") for s in (0, 1)]), expected)


def test_a_spectrum_of_no_such_images_is_refused(restore, photos, tmp_path):
    one = photos / "a.png"
    with_it = ("deblur", one, "--method", "proximal", "--spectrum")
    assert_refused(restore(*with_it, one), FAILED, "is one image, which varies by nothing")
    large = tmp_path / "large"
    large.mkdir()
    Image.new("RGB", (SIDE, SIDE + 1)).save(large / "c.png")
    assert_refused(restore(*with_it, large), FAILED, f"has {SIDE} x {SIDE + 1} pixels, and this model's images")


def test_what_is_transparent_is_filled_in_and_photos_stand_upright(restore, photos, hole, tmp_path):
    restore("inpaint", photos / "a.png", "--mask", hole, "--method", "proximal", out=tmp_path / "by mask")
    clear = tmp_path / "a.png"
    Image.fromarray(np.dstack([COLOURS[0], 255 - HOLE])).save(clear)
    assert restore("inpaint", clear, "--method", "proximal", out=tmp_path / "clear").exit_code == DONE
    turned = tmp_path / "turned" / "a.png"
    turned.parent.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(np.rot90(COLOURS[0])).save(turned, exif=exif)
    restore("inpaint", turned, "--mask", hole, "--method", "proximal", out=tmp_path / "upright")
    for seed in (0, 1):
        by_mask = read(tmp_path / "by mask" / f"a-{seed}.png")
        assert np.array_equal(read(tmp_path / "clear" / f"a-{seed}.png"), by_mask)
        assert np.array_equal(read(tmp_path / "upright" / f"a-{seed}.png"), by_mask)


def test_neither_batch_nor_folder_change_a_pixel(restore, photos, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    for k, name in enumerate("abc"):
        Image.fromarray(np.roll(HOLE, k)).save(masks / f"{name}.png")
    for size in (1, 4):
        assert (
            restore("inpaint", photos, "--mask", masks, "--batch-size", size, out=tmp_path / str(size)).exit_code == 0
        )
    restore("inpaint", photos / "b.png", "--mask", masks, "--seed", 1, n=1, out=tmp_path / "one")
    for name in names(tmp_path / "1"):
        if name.endswith(".png"):
            assert len({(tmp_path / str(size) / name).read_bytes() for size in (1, 4)}) == 1
    assert (tmp_path / "one" / "b-1.png").read_bytes() == (tmp_path / "1" / "b-1.png").read_bytes()


def test_a_run_grows_goes_on_and_is_mended(restore, photos, tmp_path, interrupted):
    common = ("--method", "proximal", "--degrade", "--batch-size", 1)
    with interrupted(6):
        stopped = restore("deblur", photos, *common)
    out = tmp_path / "restored"
    assert stopped.exit_code == INTERRUPTED
    assert "interrupted: 2 of 6 restorations in" in stopped.stderr
    assert (record(out)["status"], record(out)["images"]) == ("interrupted", 2)
    assert names(out) == ["SHA256SUMS", "a-0.png", "b-0.png", "grid.png", "run.json"]
    assert restore("deblur", photos, *common).exit_code == DONE
    (out / "c-1.png").write_bytes(b"")
    grown = restore("deblur", photos, *common, n=3)
    assert grown.exit_code == DONE
    assert "damaged, made again: c-1.png" in grown.stderr
    assert record(out)["found"] == 5
    restore("deblur", photos, *common, n=3, out=tmp_path / "whole")
    whole, got = content(tmp_path / "whole"), content(out)
    assert got.keys() == whole.keys()
    assert all(got[name] == whole[name] for name in got if name.endswith(".png"))
    assert "all from before" in restore("deblur", photos, *common, "--blur", 1.5, n=3).stderr  # the default
    assert_refused(restore("deblur", photos, *common, "--blur", 1), FAILED, "another run", "blur was 1.5, now 1.0")


@pytest.mark.parametrize("method", ["proximal", "red-diff"])
def test_overwrite_loses_nothing_when_the_new_run_cannot_be_made(restore, photos, tmp_path, method):
    restore("deblur", photos, "--method", method)
    before = content(tmp_path / "restored")
    too_much = ("--guidance", "1e30", "--label", "star")  # which ends at NaN, but where an optimiser takes small steps
    for wrong in (("--nfe", 20_000), ("--grid", "trailing"), *([too_much] if method == "proximal" else [])):
        assert restore("deblur", photos, "--method", method, *wrong, "--overwrite").exit_code == FAILED
        assert content(tmp_path / "restored") == before


def test_an_image_is_degraded_by_noise_of_its_own(photos, tmp_path):
    files = [photos / f"{name}.png" for name in "abc"]
    task = Task("superres", None, 2, 1.5, 0.3, True)
    found = degraded(files, task, SHAPE)
    errors = found.y - library.superresolution(2, SHAPE).A(found.truth)
    assert abs(float(errors.std() / 0.3) - 1) < 3 * (2 * errors.numel()) ** -0.5  # three standard errors
    assert torch.equal(degraded(files[::-1], task, SHAPE).y, found.y.flip(0))
    half = degraded(files, task._replace(name="inpaint"), SHAPE)
    assert not half.y[..., SIDE // 2 :].any()
    assert half.y[..., : SIDE // 2].all()


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["superres", "a.png"], ["a.png has 8 x 8 pixels", "it must have 2 x 2: --degrade if it is whole, or crop"]),
        (["deblur", "wide.png"], ["wide.png has 9 x 8 pixels", "crop or resize it"]),
        (["inpaint", "a.png"], ["a.png is nowhere transparent, by half or more: give a --mask, white where"]),
        (["inpaint", "thinned.png"], ["thinned.png is nowhere transparent, by half or more: give a --mask"]),
        (["deblur", "cut.png"], ["cut.png is transparent where it counts as seen: save it without transparency"]),
        (["deblur", "palette.png"], ["palette.png is transparent where it counts as seen: save it without"]),
        (["superres", "cut.png", "--degrade"], ["cut.png is transparent where it counts as seen: save it without"]),
        (["inpaint", "cut.png", "--degrade"], ["cut.png is transparent where it counts as seen: save it without"]),
        (["inpaint", "cut.png", "--mask", "corner.png"], ["cut.png is transparent where", "or make its --mask white"]),
        (["inpaint", "thinned.png", "--mask", "corner.png"], ["thinned.png is transparent where it counts as seen"]),
        (
            ["deblur", "a.png", "--method", "proximal", "--spectrum", "folder of cut.png"],
            ["--spectrum: ", "cut.png is transparent where it counts as seen: save it without transparency"],
        ),
        (["deblur", "moving.gif"], ["moving.gif has 3 frames or pages: save the one to be read as an image of"]),
        (["deblur", "pages.tif"], ["pages.tif has 3 frames or pages: save the one to be read"]),
        (["inpaint", "a.png", "--mask", "moving.gif.png"], ["moving.gif.png has 3 frames or pages: save the one"]),
        (["deblur", "broken.gif"], ["broken.gif cannot be read as an image"]),
        (["inpaint", "a.png", "--mask", "wide.png"], ["wide.png has 9 x 8 pixels", "a.png 8 x 8"]),
        (["inpaint", "a.png", "--mask", "thin.png"], ["thin.png has 1 x 8 pixels", "a.png 8 x 8: a mask must have"]),
        (["inpaint", "a.png", "--mask", "white.png"], ["white.png: the mask leaves nothing seen"]),
        (["inpaint", "gone.png"], ["gone.png: the mask leaves nothing seen"]),
        (["inpaint", "a.png", "--mask", "clear.png"], ["clear.png leaves nothing to fill in"]),
        (["inpaint", "b.png", "--mask", "masks"], ["no mask of b.png in", "masks: give an image of the name b"]),
        (["deblur", "back\\slash.png"], ["a backslash or the end of a line in its name: rename"]),
        (["deblur", "two\u2028lines.png"], ["a backslash or the end of a line in its name: rename"]),
        (["deblur", "two\n.png"], ["a backslash or the end of a line in its name: rename"]),
        (["deblur", "\udcff.png"], ["is no name in UTF-8: rename"]),
        (["deblur", "x" * 201 + ".png"], ["has a name of 201 bytes, of which 200 are left"]),
        (["deblur", "a.png", "--blur", "1e-200"], ["--blur: 1e-200 pixels are no blur"]),
        (["inpaint", "a.png", "--mask", "black.png"], ["black.png leaves nothing to fill in, its lightest"]),
        (["inpaint", "a.png", "--mask", "ones.png"], ["its lightest pixel is 1 of 255: make it white, 128 or"]),
        (["inpaint", "a.png", "--mask", "none.png"], ["none.png cannot be read as an image"]),
        (["deblur", "deep.png"], ["deep.png has more than 8 bits a colour"]),
        (["deblur", "lab.tif"], ["lab.tif is in Lab colours: save it in RGB"]),
        (["deblur", "text.png"], ["text.png cannot be read as an image"]),
        (["deblur", "missing"], ["no file or folder", "missing: give an image"]),
        (["deblur", "empty"], ["no images in", "give an image"]),
        (["deblur", "twice"], ["several images of the name a: rename"]),
        (["deblur", "a.png", "--blur", "9"], ["--blur: std must be positive and at most 2.33"]),
        (["deblur", "a.png", "--blur", "0"], ["--blur: std must be positive and at most 2.33"]),
        (["superres", "a.png", "--factor", "0"], ["--factor: factor must be 2 or more and divide"]),
        (["superres", "a.png", "--factor", "3"], ["--factor: factor must be 2 or more and divide"]),
    ],
)
def test_what_cannot_be_restored_is_told(restore, photos, tmp_path, args, parts):
    Image.fromarray(COLOURS[0]).resize((9, 8)).save(photos / "wide.png")
    Image.fromarray(np.zeros_like(HOLE)).save(photos / "black.png")
    Image.fromarray(HOLE.astype(np.uint16) * 256).save(photos / "deep.png")
    Image.new("LAB", (SIDE, SIDE)).save(photos / "lab.tif")
    (photos / "text.png").write_text("no image")
    Image.fromarray(HOLE[:, :1]).save(photos / "thin.png")
    Image.fromarray(np.full_like(HOLE, 255)).save(photos / "white.png")
    Image.fromarray(HOLE // 255).save(photos / "ones.png")
    Image.fromarray(np.full((SIDE, SIDE, 4), (255, 255, 255, 0), np.uint8)).save(photos / "clear.png")
    Image.fromarray(np.full((SIDE, SIDE, 4), (255, 255, 255, 200), np.uint8)).save(photos / "thinned.png")
    cut = Image.fromarray(np.dstack([COLOURS[0], 255 - HOLE]))
    (photos / "folder of cut.png").mkdir()
    for each in (photos / "cut.png", photos / "folder of cut.png" / "cut.png"):
        cut.save(each)
    Image.fromarray(HOLE).convert("P").save(photos / "palette.png", transparency=255)
    corner = np.zeros_like(HOLE)
    corner[0, 0] = 255
    Image.fromarray(corner).save(photos / "corner.png")
    first, *rest = map(Image.fromarray, COLOURS)
    for name in ("moving.gif", "pages.tif"):
        first.save(photos / name, save_all=True, append_images=rest)
    shutil.copy(photos / "moving.gif", photos / "moving.gif.png")
    (photos / "broken.gif").write_bytes((photos / "moving.gif").read_bytes()[:400])  # in the second frame
    Image.fromarray(np.full((SIDE, SIDE, 4), (255, 255, 255, 0), np.uint8)).save(photos / "gone.png")
    if args[1].endswith(".png") and not (photos / args[1]).exists():
        shutil.copy(photos / "a.png", photos / args[1])
    (photos / "masks").mkdir()
    shutil.copy(photos / "white.png", photos / "masks" / "a.bmp")
    (photos / "empty").mkdir()
    Image.fromarray(HOLE).save(photos / "empty" / "._x.png")
    (photos / "empty" / "folder.png").mkdir()
    (photos / "empty" / "dangling.png").symlink_to("nowhere.png")
    (photos / "twice").mkdir()
    for end in ("png", "bmp"):
        Image.fromarray(COLOURS[0]).save(photos / "twice" / f"a.{end}")
    task, image, *more = args
    more = [photos / each if each.endswith((".png", "masks")) else each for each in more]
    assert_refused(restore(task, photos / image, *more), FAILED, *parts)
    assert not (tmp_path / "restored").exists() or names(tmp_path / "restored") == []


def test_alpha_that_hides_nothing_seen_and_previews_change_nothing(photos, hole, tmp_path):
    opaque, cut, preview = (tmp_path / name for name in ("opaque.png", "cut.png", "preview.mpo"))
    Image.fromarray(np.dstack([COLOURS[0], np.full_like(HOLE, 255)])).save(opaque)
    Image.fromarray(np.dstack([COLOURS[0], 255 - HOLE])).save(cut)
    deblur, inpaint = (Task(name, hole, 4, 1.5, 0.05, False) for name in ("deblur", "inpaint"))
    assert torch.equal(degraded([opaque], deblur, SHAPE).y, given(COLOURS[0]))
    assert torch.equal(degraded([cut], inpaint, SHAPE).y, degraded([photos / "a.png"], inpaint, SHAPE).y)
    first, second = (Image.fromarray(image).resize((8, 8)) for image in COLOURS[:2])
    first.save(preview, format="MPO", save_all=True, append_images=[second])
    with Image.open(preview) as both:
        assert both.n_frames == 2
    assert torch.equal(degraded([preview], deblur, SHAPE).y, given(read(preview)))


@pytest.mark.parametrize("most", [20, 50])  # of 64 pixels: Pillow refuses twice its limit, and warns of less
def test_too_large_an_image_is_told_in_a_line(restore, photos, monkeypatch, most):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
    assert_refused(restore("deblur", photos / "a.png"), FAILED, "a.png has too many pixels", "64 pixels", "resize it")


def test_a_mask_is_found_by_stem_and_black_where_transparent(photos, tmp_path):
    clear = np.full((SIDE, SIDE, 4), 255, np.uint8)
    clear[..., 3] = HOLE
    Image.fromarray(clear).save(tmp_path / "a.webp", lossless=True, exact=True)
    found = degraded([photos / "a.png"], Task("inpaint", tmp_path, 4, 1.5, 0.05, False), SHAPE)
    assert torch.equal(found.y, given(COLOURS[0]) * SEEN)


def test_figures_are_finite_where_a_restoration_is_the_truth(photos):
    found = degraded([photos / "a.png"], Task("superres", None, 2, 1.5, 0.3, True), SHAPE)
    assert all(map(math.isfinite, found.figures({0: {0: COLOURS[0]}}).values()))


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["--task", "sharpen"], "choose from inpaint, superres, deblur"),
        (["--task", "deblur", "--method", "magic"], "choose from moment, pigdm, dps, proximal, red-diff"),
        (["--task", "deblur", "--spectrum", "."], "is for --method proximal"),
        (["--task", "deblur", "--method", "red-diff", "--solver", "ddim"], "is not for --method red-diff"),
        (["--task", "deblur", "--noise", "nan"], "nan must be from 1e-06 to 100.0"),
        (["--task", "deblur", "--noise", "0"], "0.0 must be from 1e-06 to 100.0; rounding is 0.002"),
        (["--task", "deblur", "--noise", "1e30"], "1e+30 must be from 1e-06 to 100.0"),
        (["--task", "deblur", "--solver", "analytic-dpm"], "a file of statistics, which restore cannot use"),
        (["--task", "deblur", "--solver", "tuned"], "a plan, which restore cannot use"),
        (["--task", "deblur", "--factor", "2"], "is for --task superres"),
        (["--task", "deblur", "--label", "all"], "choose one class, or 'none'"),
        (["--task", "deblur", "--label", "dragon"], "is not a class"),
        (["--task", "deblur", "--prompt", "a cat"], "is for models of text"),
        (["--task", "deblur", "--out", "photos"], "where the images are"),
    ],
)
def test_wrong_usage_names_the_option(restore, model, photos, monkeypatch, args, part):
    monkeypatch.chdir(photos.parent)
    result = run("restore", "--model", model, "--image", "photos", *args)
    assert result.exit_code == USAGE
    assert part in " ".join(result.stderr.replace("│", " ").split())
