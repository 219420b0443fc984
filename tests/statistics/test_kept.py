"""An estimate that is interrupted goes on, to the same numbers, and only that estimate."""

import dataclasses

import pytest
import torch

import fewstep as fs
from fewstep.statistics import load_statistics

pytest.importorskip("safetensors", reason="files of statistics need it")
POINTS, BATCHES = 8, 3
IMAGES = torch.randn(2 * BATCHES, 1, 2, 2, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(2 * BATCHES)
# Calls of the denoiser for a batch at a point: of EMS one for l, and three for s and b.
KINDS = {"ems": (fs.estimate_ems, 4 * BATCHES * POINTS), "gamma": (fs.estimate_gamma, BATCHES * POINTS)}


class Shrinking:
    """An exact denoiser that counts its calls, and is interrupted at one of them."""

    def __init__(self, last=None):
        self.calls, self.last = 0, last

    def __call__(self, x, t):
        self.calls += 1
        if self.calls == self.last:
            raise KeyboardInterrupt
        return x / (1 + t * t)


def estimated(kind, denoiser, **changes):
    arguments = {"points": POINTS, "batch": 2, "fingerprint": "abc", "images": IMAGES, "schedule": fs.EDM(), **changes}
    return KINDS[kind][0](denoiser, **arguments)


def interrupted(kind, folder, share=0.6):
    denoiser = Shrinking(last=int(share * KINDS[kind][1]))
    with pytest.raises(KeyboardInterrupt):
        estimated(kind, denoiser, out=folder / "s.safetensors")
    return denoiser.calls - 1


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def assert_same(*paths):
    """In content: safetensors writes the words beside the tensors in any order."""
    one, other = map(load_statistics, paths)
    assert (type(one), one.schedule, one.fingerprint) == (type(other), other.schedule, other.fingerprint)
    assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in one._columns())


@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_estimate_goes_on_to_the_same_numbers(tmp_path, kind, share):
    before = interrupted(kind, tmp_path, share)
    assert names(tmp_path) == ["s.safetensors.parts"]
    denoiser = Shrinking()
    estimated(kind, denoiser, out=tmp_path / "s.safetensors")
    assert names(tmp_path) == ["s.safetensors"]
    most = 3 * BATCHES  # of the point that was interrupted
    assert KINDS[kind][1] <= before + denoiser.calls < KINDS[kind][1] + most
    estimated(kind, Shrinking(), out=tmp_path / "whole")
    assert_same(tmp_path / "s.safetensors", tmp_path / "whole")


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_changes_no_number(tmp_path, kind):
    got = estimated(kind, Shrinking(), out=tmp_path / "s.safetensors")
    plain = estimated(kind, Shrinking())
    kept = type(got).load(tmp_path / "s.safetensors", fingerprint="abc", schedule=fs.EDM())
    for name in got._columns():
        assert torch.equal(getattr(got, name), getattr(plain, name))
        assert torch.equal(getattr(got, name), getattr(kept, name))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"fingerprint": "xyz"}, "model was 'abc', now 'xyz'"),
        ({"schedule": fs.EDM(0.01, 50.0)}, "schedule was"),
        ({"images": IMAGES + 1}, "data was"),
        ({"images": IMAGES.double()}, "data was"),
        ({"seed": 1}, "seed was 0, now 1"),
        ({"samples": 4}, "samples was None, now 4"),
        ({"points": 9}, "points was 8, now 9"),
    ],
)
def test_points_of_another_estimate_are_not_taken(tmp_path, changes, told):
    interrupted("gamma", tmp_path)
    out = tmp_path / "s.safetensors"
    with pytest.raises(FileExistsError, match=rf"{told}.*: choose another out \(--out\), or overwrite=True"):
        estimated("gamma", Shrinking(), out=out, **changes)
    assert names(tmp_path) == ["s.safetensors.parts"]
    got = estimated("gamma", Shrinking(), out=out, overwrite=True, **changes)
    assert torch.equal(got.gamma, estimated("gamma", Shrinking(), **changes).gamma)
    assert names(tmp_path) == ["s.safetensors"]


OTHERS = {"its own": None, "foreign": b'{"mine": 1}\n', "a picture": b"\x89PNG\r\n\x1a\n" + bytes(99), "empty": b""}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_not_replaced_unless_asked_and_then_at_the_end(tmp_path, kind, other):
    out = tmp_path / "s.safetensors"
    if other == "its own":
        estimated(kind, Shrinking(), out=out, seed=5)
    else:
        out.write_bytes(OTHERS[other])
    before, denoiser = out.read_bytes(), Shrinking()
    told = r"is there, and is not what is asked for: choose another out \(--out\), or overwrite=True \(--overwrite\)"
    with pytest.raises(FileExistsError, match=told):
        estimated(kind, denoiser, out=out)
    assert (denoiser.calls, out.read_bytes(), names(tmp_path)) == (0, before, [out.name])
    with pytest.raises(KeyboardInterrupt):
        estimated(kind, Shrinking(last=KINDS[kind][1] // 2), out=out, overwrite=True)
    assert out.read_bytes() == before
    assert estimated(kind, denoiser, out=out, overwrite=True).origin
    assert denoiser.calls < KINDS[kind][1]  # it went on
    assert names(tmp_path) == [out.name]
    estimated(kind, Shrinking(), out=tmp_path / "whole")
    assert_same(out, tmp_path / "whole")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_finished_is_read_and_not_estimated_again(tmp_path, kind, overwrite):
    out, denoiser = tmp_path / "s.safetensors", Shrinking()
    got = estimated(kind, Shrinking(), out=out)
    before = out.read_bytes()
    (tmp_path / "s.safetensors.parts").mkdir()  # of one that was killed as it had written the file
    again = estimated(kind, denoiser, out=out, overwrite=overwrite)
    assert (denoiser.calls, out.read_bytes(), names(tmp_path)) == (0, before, [out.name])
    assert all(torch.equal(getattr(got, name), getattr(again, name)) for name in got._columns())


def test_a_table_that_was_changed_is_not_taken_for_the_estimate(tmp_path):
    out = tmp_path / "s.safetensors"
    dataclasses.replace(estimated("gamma", Shrinking(), out=out), schedule=None).save(out)
    with pytest.raises(FileExistsError, match="is not what is asked for"):
        estimated("gamma", Shrinking(), out=out)


def test_a_folder_in_the_place_of_the_file_is_told_by_the_name_of_the_argument(tmp_path):
    with pytest.raises(IsADirectoryError, match=r"it is a folder: choose another out$"):
        estimated("gamma", Shrinking(), out=tmp_path)


def test_there_is_nothing_to_overwrite_without_a_file():
    with pytest.raises(ValueError, match="overwrite=True needs out"):
        estimated("gamma", Shrinking(), overwrite=True)


def test_other_labels_are_other_data(tmp_path):
    denoiser, out = Shrinking(last=5), tmp_path / "s.safetensors"
    with pytest.raises(KeyboardInterrupt):
        estimated("gamma", lambda labels: denoiser, labels=LABELS, out=out)
    for labels in (LABELS.flip(0), None):
        with pytest.raises(FileExistsError, match="data was"):
            estimated("gamma", denoiser if labels is None else lambda labels: denoiser, labels=labels, out=out)
    estimated("gamma", lambda labels: denoiser, labels=LABELS, out=out)
    assert denoiser.calls == BATCHES * POINTS + 2  # the interrupted call, and the one before it in its point


def test_points_are_not_kept_of_a_model_that_is_not_named(tmp_path):
    with pytest.raises(ValueError, match="out needs a fingerprint"):
        estimated("gamma", Shrinking(), fingerprint=None, out=tmp_path / "s")
    assert names(tmp_path) == []


def test_an_estimate_that_fails_at_once_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="samples must be at least 2"):
        estimated("gamma", Shrinking(), samples=1, out=tmp_path / "s")
    assert names(tmp_path) == []


def test_a_damaged_point_is_made_again(tmp_path):
    interrupted("gamma", tmp_path)
    (tmp_path / "s.safetensors.parts" / "gamma-0.npy").write_bytes(b"")
    estimated("gamma", Shrinking(), out=tmp_path / "s.safetensors")
    estimated("gamma", Shrinking(), out=tmp_path / "whole")
    assert_same(tmp_path / "s.safetensors", tmp_path / "whole")
