"""A folder of work: whole files, true checksums, one process at a time, no one else's files touched."""

import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading

import pytest

from fewstep import store as store_module
from fewstep.files import LOCK
from fewstep.store import Store

SETTINGS = {"n": 4, "seed": 0, "classes": ["a", "b"]}
FILES = {"a": b"one", "b": b"two"}


def store(folder, **changes):
    return Store(folder, {**SETTINGS, **changes}, names=("a", "b"), extends=("n",))


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != LOCK}


def record(folder):
    return json.loads((folder / "run.json").read_text())


def lines(folder):
    return [line.split("  ") for line in (folder / "SHA256SUMS").read_text().splitlines()]


@pytest.fixture
def filled(tmp_path):
    with store(tmp_path) as work:
        work.write(FILES)
        work.record("done", seconds=1.5)
    return tmp_path


def test_what_was_written_is_held_by_the_next_process(filled):
    assert record(filled) == {"status": "done", "settings": SETTINGS, "seconds": 1.5}
    with store(filled) as work:
        assert [work.holds(name) for name in ("a", "b", "c")] == [True, True, False]
        assert work.previous == record(filled)
        assert work.read("b") == b"two"
        assert work.damaged == []


def test_checksums_are_those_that_sha256sum_checks(filled):
    assert lines(filled) == [[hashlib.sha256(FILES[name]).hexdigest(), name] for name in ("a", "b")]


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_sha256sum_reads_the_checksums(filled):
    with store(filled) as work:
        work.write({"b": b"three"})
        work.record("done")
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=filled, check=True, capture_output=True)


@pytest.mark.parametrize("damage", [b"", b"on", b"onE", b"one more"])
def test_a_damaged_file_is_told_and_can_be_written_again(filled, damage):
    (filled / "a").write_bytes(damage)
    with store(filled) as work:
        assert work.damaged == ["a"]
        assert not work.holds("a")
        work.write({"a": b"one"})
        assert work.holds("a")
        work.record("done")
    with store(filled) as work:
        assert work.damaged == []


def test_a_file_is_held_as_soon_as_it_is_there_though_the_interruption_came_at_once(tmp_path, monkeypatch):
    with store(tmp_path) as work:
        work.write({"a": b"old"})

        def replace(source, target, real=os.replace):
            real(source, target)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace)
            with pytest.raises(KeyboardInterrupt):
                work.write(FILES)
        assert (work.holds("a"), work.holds("b")) == (True, False)
        assert content(tmp_path)["a"] == b"one"


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_file_that_is_replaced_is_held_before_and_after(filled, monkeypatch, moment):
    """A kill between the checksum and the file leaves the old one, which is whole."""

    def replace(source, target, real=os.replace):
        if moment == "after":
            real(source, target)
        raise KeyboardInterrupt

    with store(filled) as work:
        work.record("running")
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace)
            with pytest.raises(KeyboardInterrupt):
                work.write({"a": b"three"})
    with store(filled) as work:
        assert work.damaged == []
        assert work.read("a") == (b"three" if moment == "after" else b"one")
        work.record("done")
    assert lines(filled)[0] == [hashlib.sha256((filled / "a").read_bytes()).hexdigest(), "a"]


def test_a_last_line_that_was_cut_is_dropped_and_its_file_was_not_begun(filled):
    with (filled / "SHA256SUMS").open("ab") as file:
        file.write(b"0" * 64 + b"  c")
    with store(filled) as work:
        assert work.damaged == []
        work.write({"c": b"three"})
    with store(filled) as work:
        assert all(work.holds(name) for name in "abc")


def test_a_full_disk_names_the_file_and_the_store_goes_on_when_there_is_room(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with store(tmp_path) as work:
        work.write({"a": b"one"})
        for failing, named in (("SHA256SUMS", "SHA256SUMS"), ("b", "b")):
            calls = iter([named != "SHA256SUMS"])
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", lambda fd, calls=calls: None if next(calls, False) else full(fd))
                with pytest.raises(OSError, match=rf"cannot write .*{failing} \(No space left on device\): make room"):
                    work.write({"b": b"two"})
        assert not work.holds("b")
        work.write({"b": b"two"})
    assert content(tmp_path).keys() == {"a", "b", "run.json", "SHA256SUMS"}
    with store(tmp_path) as work:
        assert work.holds("a")
        assert work.holds("b")


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc to know a descriptor's file")
def test_content_is_flushed_before_its_name_appears_and_its_checksum_before_that(tmp_path, monkeypatch):
    """The order that a power loss cannot break."""
    happened = []
    fsync, replace = os.fsync, os.replace

    def flushed(descriptor):
        happened.append(("flush", os.path.realpath(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def replaced(source, target):
        happened.append(("move", os.path.basename(target), os.path.realpath(source)))
        replace(source, target)

    with store(tmp_path) as work:
        work.record("running")
        monkeypatch.setattr(os, "fsync", flushed)
        monkeypatch.setattr(os, "replace", replaced)
        work.write({"a": b"one"})
    sums, content_, moved, folder = happened
    assert sums == ("flush", str(tmp_path / "SHA256SUMS"))
    assert moved == ("move", "a", content_[1])
    assert folder == ("flush", str(tmp_path))


# Settings


@pytest.mark.parametrize("changes", [{"seed": 1}, {"n": 3}, {"new": True}, {"classes": ["b", "a"]}])
def test_other_settings_are_refused_and_nothing_is_touched(filled, changes):
    before = content(filled)
    (key,) = changes
    told = rf"another run \({key} was .*, now .*\): choose another --out$"
    with pytest.raises(FileExistsError, match=told):
        store(filled, **changes)
    assert content(filled) == before


def test_who_is_refused_is_told_by_the_words_that_they_have(filled):
    words = {"argument": "folder", "instead": "overwrite=True"}
    with pytest.raises(FileExistsError, match=r"another run .*: choose another folder, or overwrite=True$"):
        Store(filled, {}, **words)
    with store(filled), pytest.raises(BlockingIOError, match=r"or choose another folder$"):
        Store(filled, SETTINGS, **words)
    (filled / "c").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"c is not of this run: choose another folder$"):
        Store(filled, SETTINGS, names="c", **words)


def test_a_number_may_grow_and_the_files_stay(filled):
    with store(filled, n=8) as work:
        assert work.holds("a")
        assert work.previous["settings"]["n"] == 4
        work.record("done")
    assert record(filled)["settings"]["n"] == 8


def test_settings_are_compared_as_they_are_written(filled):
    with store(filled, classes=("a", "b")) as work:
        assert work.holds("a")


def test_overwriting_removes_what_was_written_and_nothing_else(filled):
    mine = {"900000.png": b"mine", "c": b"mine", ".a.part": b"mine"}
    for name, each in mine.items():
        (filled / name).write_bytes(each)
    with Store(filled, {**SETTINGS, "seed": 1}, overwrite=True) as work:
        assert (work.previous, work.damaged) == (None, [])
        work.write({"d": b"new"})
        work.record("done")
    assert content(filled).items() >= mine.items()
    assert content(filled).keys() == {*mine, "d", "run.json", "SHA256SUMS"}


def test_overwriting_removes_nothing_before_there_is_something_to_replace_it(filled):
    """What fails before its first file leaves the other run whole, and its record."""
    (filled / "b").write_bytes(b"damaged")
    before = content(filled)
    for status in ("failed", "interrupted"):
        with Store(filled, {**SETTINGS, "seed": 1}, overwrite=True) as work:
            assert not any(map(work.holds, FILES))
            assert work.record(status)["settings"]["seed"] == 1
            (filled / "mine").write_bytes(b"mine")
            with pytest.raises(FileExistsError, match="mine is not of this run"):
                work.write({"a": b"new", "mine": b"new"})
            (filled / "mine").unlink()
        assert content(filled) == before


def test_a_store_that_begins_anew_replaces_its_own_files_too(filled):
    before = content(filled)
    with store(filled) as work:
        work.begin_anew()
        assert not any(map(work.holds, FILES))
        assert content(filled) == before
        work.write({"b": b"new"})
        assert content(filled).keys() == {"b", "run.json", "SHA256SUMS"}
    assert lines(filled) == [[hashlib.sha256(b"new").hexdigest(), "b"]]


def test_overwriting_that_is_killed_at_any_moment_leaves_one_run_or_the_other(filled, tmp_path_factory, monkeypatch):
    """Killed before each change to the folder in turn: what is held then is of the record that is there."""
    other, new = {**SETTINGS, "seed": 1}, {"b": b"three", "c": b"four"}
    for moment in range(100):
        folder = tmp_path_factory.mktemp("killed") / "run"
        shutil.copytree(filled, folder)
        left = iter(range(moment))

        def killed(real, left=left):
            def change(*args, **kwargs):
                if next(left, None) is None:
                    raise KeyboardInterrupt
                return real(*args, **kwargs)

            return change

        work = Store(folder, other, overwrite=True)
        try:
            with work, monkeypatch.context() as patch:
                for owner, name in ((os, "replace"), (type(folder), "unlink"), (store_module, "append")):
                    patch.setattr(owner, name, killed(getattr(owner, name)))
                work.write(new)
                work.record("done")
        except KeyboardInterrupt:
            pass
        else:
            break
        wanted = FILES if record(folder)["settings"] == SETTINGS else new
        with Store(folder, record(folder)["settings"]) as work:
            assert work.damaged == []
            kept = {name: work.read(name) for name in "abc" if work.holds(name)}
            assert kept.items() <= wanted.items()
            assert all(name in kept for name in content(folder).keys() - {"run.json", "SHA256SUMS"})
        with Store(folder, other, overwrite=True) as work:
            work.write({name: each for name, each in new.items() if not work.holds(name)})
            work.record("done")
        assert {name: content(folder)[name] for name in content(folder).keys() & set("abc")} == new
        assert len(lines(folder)) == 2
    assert moment > 5  # of two files to remove and two to write


def test_a_record_without_files_does_not_hold_the_folder(tmp_path):
    with store(tmp_path) as work:
        work.record("failed")
    with store(tmp_path, seed=1) as work:
        work.write(FILES)
    assert record(tmp_path)["settings"]["seed"] == 1


def test_a_store_that_is_removed_leaves_what_is_not_its_own(tmp_path):
    for mine in ({}, {"notes.txt": b"mine"}):
        folder = tmp_path / "work"
        with store(folder) as work:
            work.write(FILES)
            for name, each in mine.items():
                (folder / name).write_bytes(each)
            work.remove()
        assert folder.exists() == bool(mine)
        assert not mine or content(folder) == mine


# Files of others


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["a", "SHA256SUMS"])
def test_a_file_of_others_in_the_way_is_refused(tmp_path, name, overwrite):
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=rf"{name} is not of this run: choose another --out"):
        Store(tmp_path, SETTINGS, names=("a",), overwrite=overwrite)
    assert content(tmp_path) == {name: b"mine"}


def test_a_file_of_others_that_came_later_is_not_written_over(filled):
    (filled / "c").write_bytes(b"mine")
    before = content(filled)
    with store(filled) as work, pytest.raises(FileExistsError, match="c is not of this run"):
        work.write({"a": b"new", "c": b"three"})
    assert content(filled) == before


@pytest.mark.parametrize(
    "line", ["", "mine", "0" * 64, "0" * 64 + "  ../a", "0" * 64 + "  run.json", "0" * 63 + "  a", "0" * 64 + " *a"]
)
def test_checksums_that_are_not_ours_are_refused(filled, line):
    (filled / "SHA256SUMS").write_text(f"{line}\n")
    before = content(filled)
    with pytest.raises(FileExistsError, match="SHA256SUMS is damaged, or not of a run of fewstep"):
        store(filled, seed=1)
    assert content(filled) == before


def test_what_a_killed_process_left_half_written_is_removed_and_nothing_like_it(filled):
    left = [".a.0123456789abcdef.part", ".run.json.0123456789abcdef.part"]
    like = [".c.0123456789abcdef.part", ".a.0123456789abcde.part", "a.0123456789abcdef.part"]
    for name in (*left, *like):
        (filled / name).write_bytes(b"half")
    with store(filled):
        assert content(filled).keys() == {"a", "b", "run.json", "SHA256SUMS", *like}


# Company


def test_a_second_one_is_refused_until_the_first_is_closed(filled):
    with store(filled), pytest.raises(BlockingIOError, match=r"is in use by another run: wait .* choose another --out"):
        store(filled)
    store(filled).close()


def test_a_refused_store_holds_no_lock(filled):
    with pytest.raises(FileExistsError):
        store(filled, seed=1)
    store(filled).close()


def test_a_second_thread_is_refused(filled):
    refused = []

    def other():
        try:
            store(filled).close()
        except BlockingIOError:
            refused.append(True)

    with store(filled):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert refused == [True]


HOLDING = "import sys, time; from pathlib import Path; from fewstep.store import Store\n" + (
    f"work = Store(Path(sys.argv[1]), {SETTINGS!r}); print('held', flush=True); time.sleep(600)"
)


def test_the_lock_dies_with_its_process(filled):
    with subprocess.Popen([sys.executable, "-c", HOLDING, str(filled)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            with pytest.raises(BlockingIOError, match="in use by another run"):
                store(filled)
        finally:
            process.kill()
    with store(filled) as work:
        assert work.holds("a")


def _race(folder, mark, barrier, results):
    barrier.wait()
    try:
        with Store(folder, {"mark": mark}, names=("a",)) as work:
            work.write({"a": str(mark).encode()})
            results.put((mark, "wrote"))
            barrier.wait()
            work.record("done")
    except OSError as error:
        barrier.wait()
        results.put((mark, type(error).__name__))


@pytest.mark.skipif(os.name == "nt", reason="needs fork")
def test_of_several_at_once_one_gets_the_folder(tmp_path):
    context, count = multiprocessing.get_context("fork"), 4
    for i in range(5):
        folder = tmp_path / str(i)
        barrier, results = context.Barrier(count), context.Queue()
        racers = [context.Process(target=_race, args=(folder, mark, barrier, results)) for mark in range(count)]
        for racer in racers:
            racer.start()
        told = [results.get(timeout=60) for _ in racers]
        for racer in racers:
            racer.join()
        (winner,) = [mark for mark, what in told if what == "wrote"]
        assert [what for mark, what in told if mark != winner] == ["BlockingIOError"] * (count - 1)
        assert (folder / "a").read_text() == str(winner)
        assert record(folder) == {"status": "done", "settings": {"mark": winner}}
