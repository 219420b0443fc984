"""A folder of samples: whole files, a true record, no one else's files touched."""

import json

import numpy as np
import pytest

from fewstep import runs
from fewstep.files import write_atomically
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


def record(folder):
    return json.loads((folder / "run.json").read_text())


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_run_keeps_its_images_and_says_what_it_is(tmp_path, as_npz):
    run = Run(tmp_path, SETTINGS, as_npz)
    assert run.made == 0
    run.add(IMAGES[:2])
    run.add(IMAGES[2:])
    got = run.finish("done", seconds=1.5)
    assert got == record(tmp_path) == {"status": "done", "images": 5, "settings": SETTINGS, "seconds": 1.5}
    assert np.array_equal(stored(tmp_path, as_npz), IMAGES)
    images = ["samples.npz"] if as_npz else [f"{i:06d}.png" for i in range(5)]
    assert names(tmp_path) == sorted([*images, "grid.png", "run.json"])


def test_the_sheet_shows_the_images_in_order(tmp_path, as_npz):
    run = Run(tmp_path, SETTINGS, as_npz)
    run.add(IMAGES)
    run.finish("done")
    sheet = read(tmp_path / "grid.png")
    assert np.array_equal(sheet[:64:8, :64:8], IMAGES[0])
    assert np.array_equal(sheet[66::8, 66:130:8], IMAGES[4])


def test_the_sheet_shows_no_more_than_it_can(tmp_path, as_npz, monkeypatch):
    monkeypatch.setattr(runs, "SHEET", 4)
    run = Run(tmp_path, SETTINGS, as_npz)
    run.add(IMAGES)
    run.finish("done")
    assert read(tmp_path / "grid.png").shape == (130, 130, 3)
    assert len(stored(tmp_path, as_npz)) == 5


def test_an_interrupted_run_goes_on(tmp_path, as_npz):
    run = Run(tmp_path, SETTINGS, as_npz)
    run.add(IMAGES[:3])
    assert run.finish("interrupted")["images"] == 3
    again = Run(tmp_path, SETTINGS, as_npz)
    assert again.made == 3
    assert again.complete() is None
    again.add(IMAGES[3:])
    again.finish("done")
    assert np.array_equal(stored(tmp_path, as_npz), IMAGES)


def test_a_killed_run_goes_on_from_its_files(tmp_path):
    run = Run(tmp_path, SETTINGS)
    run.write_record("running")
    run.add(IMAGES[:3])
    assert Run(tmp_path, SETTINGS).made == 3


def test_what_was_written_is_counted_though_the_interruption_came_at_once(tmp_path, monkeypatch):
    run = Run(tmp_path, SETTINGS)
    run.add(IMAGES[:1])

    def interrupted(path, content):
        write_atomically(path, content)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs, "write_atomically", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.add(IMAGES[1:])
    assert run.finish("interrupted")["images"] == 2
    assert len(stored(tmp_path, False)) == 2


def test_an_image_that_was_deleted_is_made_again(tmp_path):
    run = Run(tmp_path, SETTINGS)
    run.add(IMAGES)
    run.finish("done")
    (tmp_path / "000002.png").unlink()
    again = Run(tmp_path, SETTINGS)
    assert again.made == 2
    assert again.complete() is None


def test_a_finished_run_is_complete(tmp_path, as_npz):
    run = Run(tmp_path, SETTINGS, as_npz)
    run.add(IMAGES)
    written = run.finish("done", seconds=2.0)
    assert Run(tmp_path, SETTINGS, as_npz).complete() == written


def test_another_run_is_refused_and_what_differs_is_said(tmp_path, as_npz):
    run = Run(tmp_path, SETTINGS, as_npz)
    run.add(IMAGES)
    run.finish("done")
    with pytest.raises(FileExistsError, match=r"another run \(seed was 0, now 7\): choose another --out, or"):
        Run(tmp_path, {**SETTINGS, "seed": 7}, as_npz)


def test_another_run_is_replaced_if_asked(tmp_path, as_npz):
    run = Run(tmp_path, SETTINGS, as_npz)
    run.add(IMAGES)
    run.finish("done")
    (tmp_path / "notes.txt").write_text("mine")
    other = Run(tmp_path, {**SETTINGS, "n": 2}, not as_npz, overwrite=True)
    assert other.made == 0
    other.add(IMAGES[3:])
    other.finish("done")
    assert np.array_equal(stored(tmp_path, not as_npz), IMAGES[3:])
    images = ["000000.png", "000001.png"] if as_npz else ["samples.npz"]
    assert names(tmp_path) == sorted([*images, "grid.png", "notes.txt", "run.json"])


def test_overwrite_goes_on_with_the_same_run(tmp_path, as_npz):
    run = Run(tmp_path, SETTINGS, as_npz)
    run.add(IMAGES[:3])
    run.finish("interrupted")
    assert Run(tmp_path, SETTINGS, as_npz, overwrite=True).made == 3


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["000000.png", "000007.png", "samples.npz", "grid.png"])
def test_files_that_are_not_of_a_run_are_not_touched(tmp_path, as_npz, name, overwrite):
    content = png(IMAGES[0])
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileExistsError, match=rf"{name} is not of a run.*choose another --out"):
        Run(tmp_path, SETTINGS, as_npz, overwrite)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {name: content}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"mine": 1}', '{"settings": 3}', "\xff"])
def test_a_record_that_is_not_ours_is_not_touched(tmp_path, content, overwrite):
    (tmp_path / "run.json").write_text(content, encoding="latin-1")
    (tmp_path / "000000.png").write_bytes(png(IMAGES[0]))
    with pytest.raises(FileExistsError, match=r"run\.json is not of a run of fewstep: choose another --out"):
        Run(tmp_path, SETTINGS, False, overwrite)
    assert names(tmp_path) == ["000000.png", "run.json"]
    assert (tmp_path / "run.json").read_text(encoding="latin-1") == content


def test_a_folder_with_other_files_is_fine(tmp_path):
    (tmp_path / "photo.png").write_bytes(png(IMAGES[0]))
    assert Run(tmp_path, SETTINGS).made == 0


def test_a_run_that_failed_before_its_first_image_does_not_hold_the_folder(tmp_path, as_npz):
    Run(tmp_path, SETTINGS, as_npz).write_record("running")
    run = Run(tmp_path, {**SETTINGS, "seed": 7}, as_npz)
    run.add(IMAGES)
    assert run.finish("done")["settings"]["seed"] == 7
