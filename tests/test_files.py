"""Files appear whole or not at all."""

import os

import numpy as np
import pytest

from fewstep.files import check_writable, read_npz, write_atomically


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "a"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError, SystemExit])
@pytest.mark.parametrize("old", [None, b"old"])
def test_an_interruption_half_way_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, interruption, old):
    path = tmp_path / "a"
    if old is not None:
        path.write_bytes(old)

    def interrupted(source, target):
        assert os.path.getsize(source) == 3
        raise interruption

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(interruption):
        write_atomically(path, b"new")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == ({} if old is None else {"a": old})


def test_a_file_has_the_permissions_that_the_user_asked_for(tmp_path):
    mask = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a", b"")
    finally:
        os.umask(mask)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_npz_is_told_wherever_it_is_damaged(tmp_path, save):
    """Every byte in turn is where the file ends, or has a bit flipped; what no checksum covers may still be read."""
    path, images = tmp_path / "a.npz", np.arange(192, dtype=np.uint8).reshape(1, 8, 8, 3)
    save(path, images=images)
    content = path.read_bytes()
    read = {0: 0, 1: 0}
    for i in range(len(content)):
        for flip, damaged in enumerate(
            (content[:i], bytes([*content[:i], content[i] ^ 1 << i % 8, *content[i + 1 :]]))
        ):
            path.write_bytes(damaged)
            try:
                found = read_npz(path)
            except ValueError as error:
                assert "is not a whole npz file of arrays: copy it anew" in str(error)  # noqa: PT017
            else:
                read[flip] += 1
                assert all(np.array_equal(array, images) for array in found.values())
    assert read[0] == 0
    assert read[1] < len(content) / 2


def test_a_folder_is_made_and_left_empty(tmp_path):
    check_writable(tmp_path / "a" / "b")
    assert names(tmp_path / "a" / "b") == []


@pytest.mark.parametrize("below", ["", "deeper", "deeper/still"])
def test_a_path_at_or_below_a_file_cannot_be_written(tmp_path, below):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match=r"cannot write to .*file.* \(.+\): choose another --out"):
        check_writable(tmp_path / "file" / below)
    assert (tmp_path / "file").read_text() == "mine"
