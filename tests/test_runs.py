"""A folder of samples: whole files, a true record, no one else's files touched."""

import json
import os

import numpy as np
import pytest

from fewstep import runs
from fewstep.files import LOCK
from fewstep.pictures import png, read
from fewstep.runs import Run

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
SETTINGS = {"n": 5, "seed": 0, "solver": "a"}


@pytest.fixture(params=[False, True], ids=["png", "npz"])
def as_npz(request):
    return request.param


def stored(folder, as_npz):
    if as_npz:
        with np.load(folder / "samples.npz") as file:
            return file["images"]
    return np.stack([read(path) for path in sorted(folder.glob("[0-9]*.png"))])


def filled(folder, as_npz=False, count=5, status="done", **changes):
    """A run of which `count` images were made."""
    with Run(folder, {**SETTINGS, **changes}, as_npz) as run:
        run.add(IMAGES[run.made : count])
        return run.finish(status, seconds=1.5)


def record(folder):
    return json.loads((folder / "run.json").read_text())


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != LOCK)


def test_a_run_keeps_its_images_and_says_what_it_is(tmp_path, as_npz):
    with Run(tmp_path, SETTINGS, as_npz) as run:
        assert (run.made, run.missing) == (0, [0, 1, 2, 3, 4])
        run.add(IMAGES[:2])
        run.add(IMAGES[2:])
        assert (run.made, run.missing) == (5, [])
        got = run.finish("done", seconds=1.5)
    assert got == record(tmp_path) == {"status": "done", "images": 5, "settings": SETTINGS, "seconds": 1.5}
    assert np.array_equal(stored(tmp_path, as_npz), IMAGES)
    images = ["samples.npz"] if as_npz else [f"{i:06d}.png" for i in range(5)]
    assert names(tmp_path) == sorted([*images, "SHA256SUMS", "grid.png", "run.json"])


def test_the_sheet_shows_the_images_in_order(tmp_path, as_npz):
    filled(tmp_path, as_npz)
    sheet = read(tmp_path / "grid.png")
    assert np.array_equal(sheet[:64:8, :64:8], IMAGES[0])
    assert np.array_equal(sheet[66::8, 66:130:8], IMAGES[4])


def test_the_sheet_shows_no_more_than_it_can(tmp_path, as_npz, monkeypatch):
    monkeypatch.setattr(runs, "SHEET", 4)
    filled(tmp_path, as_npz)
    assert read(tmp_path / "grid.png").shape == (130, 130, 3)
    assert len(stored(tmp_path, as_npz)) == 5


def test_an_interrupted_run_goes_on(tmp_path, as_npz):
    assert filled(tmp_path, as_npz, 3, "interrupted")["images"] == 3
    with Run(tmp_path, SETTINGS, as_npz) as again:
        assert (again.made, again.missing) == (3, [3, 4])
        assert again.complete() is None
        again.add(IMAGES[3:])
        again.finish("done")
    assert np.array_equal(stored(tmp_path, as_npz), IMAGES)


def test_a_killed_run_goes_on_from_its_files(tmp_path):
    with Run(tmp_path, SETTINGS) as run:
        run.add(IMAGES[:3])
    assert record(tmp_path) == {"status": "running", "settings": SETTINGS}
    with Run(tmp_path, SETTINGS) as run:
        assert run.made == 3


def test_what_was_written_is_counted_though_the_interruption_came_at_once(tmp_path, monkeypatch):
    with Run(tmp_path, SETTINGS) as run:
        run.add(IMAGES[:1])

        def interrupted(source, target, real=os.replace):
            real(source, target)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", interrupted)
            with pytest.raises(KeyboardInterrupt):
                run.add(IMAGES[1:])
        assert run.finish("interrupted")["images"] == 2
    assert len(stored(tmp_path, False)) == 2


def test_more_images_than_are_missing_are_refused(tmp_path, as_npz):
    with Run(tmp_path, SETTINGS, as_npz) as run:
        run.add(IMAGES[:3])
        with pytest.raises(ValueError, match="2 images are missing; got 3"):
            run.add(IMAGES[:3])


def test_a_finished_run_is_complete(tmp_path, as_npz):
    written = filled(tmp_path, as_npz)
    with Run(tmp_path, SETTINGS, as_npz) as run:
        assert run.complete() == written


@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "another", "a bit"])
@pytest.mark.parametrize("name", ["000001.png", "grid.png"])
def test_a_finished_run_is_looked_at_again_and_only_what_is_damaged_is_made_again(tmp_path, name, damage):
    filled(tmp_path)
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.glob("*.png")}
    path, content = tmp_path / name, before[name][0]
    if damage == "gone":
        path.unlink()
    else:
        flipped = bytes([*content[:50], content[50] ^ 1, *content[51:]])
        path.write_bytes({"empty": b"", "cut": content[:-9], "another": png(IMAGES[0]), "a bit": flipped}[damage])
    with Run(tmp_path, SETTINGS) as run:
        assert run.damaged == [name] * (damage != "gone")
        assert run.complete() is None
        assert run.missing == [1] * (name != "grid.png")
        run.add(IMAGES[run.missing])
        run.finish("done")
    after = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.glob("*.png")}
    assert {each: after[each][0] for each in after} == {each: before[each][0] for each in before}
    assert all(after[each] == before[each] for each in before if each not in (name, "grid.png"))
    with Run(tmp_path, SETTINGS) as run:
        assert run.complete() is not None


@pytest.mark.parametrize("damage", [b"", b"PK"])
def test_a_damaged_npz_is_made_again(tmp_path, damage):
    filled(tmp_path, True)
    (tmp_path / "samples.npz").write_bytes(damage)
    with Run(tmp_path, SETTINGS, True) as run:
        assert run.damaged == ["samples.npz"]
        assert run.missing == [0, 1, 2, 3, 4]
    filled(tmp_path, True)
    assert np.array_equal(stored(tmp_path, True), IMAGES)


def test_a_run_is_extended(tmp_path, as_npz):
    filled(tmp_path, as_npz, count=2, n=2)
    before = stored(tmp_path, as_npz)
    with Run(tmp_path, SETTINGS, as_npz) as run:
        assert (run.made, run.missing) == (2, [2, 3, 4])
        assert run.complete() is None
        run.add(IMAGES[2:])
        assert run.finish("done")["images"] == 5
    assert np.array_equal(stored(tmp_path, as_npz)[:2], before)
    assert np.array_equal(stored(tmp_path, as_npz), IMAGES)


def test_a_run_is_not_cut(tmp_path, as_npz):
    filled(tmp_path, as_npz)
    with pytest.raises(FileExistsError, match=r"another run \(n was 5, now 4\): choose another --out, or --overwrite"):
        Run(tmp_path, {**SETTINGS, "n": 4}, as_npz)
    assert len(stored(tmp_path, as_npz)) == 5


def test_another_run_is_refused_and_what_differs_is_said(tmp_path, as_npz):
    filled(tmp_path, as_npz)
    with pytest.raises(FileExistsError, match=r"another run \(seed was 0, now 7\): choose another --out, or"):
        Run(tmp_path, {**SETTINGS, "seed": 7}, as_npz)


def test_another_run_is_replaced_if_asked_and_nothing_else(tmp_path, as_npz):
    filled(tmp_path, as_npz)
    mine = ["000005.png", "900000.png", "notes.txt"]
    for name in mine:
        (tmp_path / name).write_text("mine")
    with Run(tmp_path, {**SETTINGS, "n": 2}, not as_npz, overwrite=True) as other:
        assert other.made == 0
        other.add(IMAGES[3:])
        other.finish("done")
    images = ["000000.png", "000001.png"] if as_npz else ["samples.npz"]
    assert names(tmp_path) == sorted([*images, "SHA256SUMS", "grid.png", "run.json", *mine])
    assert all((tmp_path / name).read_text() == "mine" for name in mine)


def test_a_run_is_not_extended_over_images_of_others(tmp_path):
    filled(tmp_path, count=2, n=2)
    (tmp_path / "000003.png").write_text("mine")
    with pytest.raises(FileExistsError, match=r"000003\.png is not of this run"):
        Run(tmp_path, SETTINGS)
    assert (tmp_path / "000003.png").read_text() == "mine"


def test_overwrite_goes_on_with_the_same_run(tmp_path, as_npz):
    filled(tmp_path, as_npz, 3, "interrupted")
    with Run(tmp_path, SETTINGS, as_npz, overwrite=True) as run:
        assert run.made == 3


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["images", "grid.png"])
def test_files_that_are_not_of_a_run_are_not_touched(tmp_path, as_npz, name, overwrite):
    content = png(IMAGES[0])
    name = {"images": "samples.npz" if as_npz else "000004.png"}.get(name, name)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileExistsError, match=rf"{name} is not of this run: choose another --out"):
        Run(tmp_path, SETTINGS, as_npz, overwrite)
    assert names(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() == content


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"mine": 1}', '{"settings": 3}', "\xff"])
def test_a_record_that_is_not_ours_is_not_touched(tmp_path, content, overwrite):
    (tmp_path / "run.json").write_text(content, encoding="latin-1")
    (tmp_path / "000000.png").write_bytes(png(IMAGES[0]))
    with pytest.raises(FileExistsError, match=r"run\.json is damaged, or not of a run of fewstep: choose another"):
        Run(tmp_path, SETTINGS, False, overwrite)
    assert names(tmp_path) == ["000000.png", "run.json"]
    assert (tmp_path / "run.json").read_text(encoding="latin-1") == content


def test_a_folder_with_other_files_is_fine(tmp_path):
    (tmp_path / "photo.png").write_bytes(png(IMAGES[0]))
    with Run(tmp_path, SETTINGS) as run:
        assert run.made == 0


def test_a_run_that_failed_before_its_first_image_does_not_hold_the_folder(tmp_path, as_npz):
    filled(tmp_path, as_npz, 0, "failed")
    assert filled(tmp_path, as_npz, seed=7)["settings"]["seed"] == 7
