"""`fewstep sample`: what it writes, and how it goes on."""

import errno
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

import fewstep
from cli.commands import DONE, FAILED, INTERRUPTED, assert_refused, content, names, record, run, stored
from fewstep.adapters.unet2d import EDMModel
from fewstep.pictures import png
from fewstep.table import SOLVERS
from tiny import CLASSES, SIDE


def test_a_run_is_images_a_sheet_and_a_record(sample, model, tmp_path):
    result = sample("--solver", "heun", "--seed", "5", "--label", "square", "--guidance", "2", "--grid", "karras")
    assert result.exit_code == DONE
    folder = tmp_path / "samples"
    assert names(folder) == [*(f"{i:06d}.png" for i in range(4)), "SHA256SUMS", "grid.png", "run.json"]
    assert stored(folder).shape == (4, SIDE, SIDE, 3)
    written = record(folder)
    assert (written["status"], written["images"]) == ("done", 4)
    asked = {"model": str(model), "solver": "heun", "nfe": 2, "n": 4, "seed": 5, "label": "square", "guidance": 2.0}
    assert asked.items() <= written["settings"].items()
    assert result.stdout == ""
    assert f"4 images in {folder}" in result.stderr.replace("\n", "")


def test_an_image_is_what_the_library_draws(sample, model, tmp_path):
    sample("--label", "star", "--guidance", "1.5", "--seed", "3", "--solver", "unipc-2", n=2)
    loaded = fewstep.adapters.load_model(model, batch=8)
    images = fewstep.sample(
        loaded.conditioned(2, 1.5),
        fewstep.unit_noise([3, 4], loaded.shape),
        nfe=2,
        solver=fewstep.UniPC(order=2),
        schedule=loaded.schedule,
    )
    assert np.array_equal(stored(tmp_path / "samples"), fewstep.pictures.pixels(images))


def test_npz_holds_the_same_pixels_as_png(sample, tmp_path):
    sample()
    sample("--npz", out=tmp_path / "npz")
    assert names(tmp_path / "npz") == ["SHA256SUMS", "grid.png", "run.json", "samples.npz"]
    with np.load(tmp_path / "npz" / "samples.npz") as file:
        assert np.array_equal(file["images"], stored(tmp_path / "samples"))
    assert (tmp_path / "npz" / "grid.png").read_bytes() == (tmp_path / "samples" / "grid.png").read_bytes()


def test_batch_size_changes_no_pixel(sample, tmp_path):
    for size in (1, 3, 16):
        assert sample("--batch-size", size, "--guidance", "2", n=17, out=tmp_path / str(size)).exit_code == DONE
    one = stored(tmp_path / "1")
    assert len(np.unique(one, axis=0)) == 17
    assert np.array_equal(stored(tmp_path / "3"), one)
    assert np.array_equal(stored(tmp_path / "16"), one)


def test_batch_size_changes_no_pixel_of_the_packaged_model(tmp_path):
    for size in (1, 3):
        out = tmp_path / str(size)
        assert run("sample", "--n", 4, "--nfe", 2, "--batch-size", size, "--out", out).exit_code == DONE
    assert np.array_equal(stored(tmp_path / "1"), stored(tmp_path / "3"))


@pytest.mark.parametrize("label", ["all", "none", "star"])
def test_image_i_of_a_seed_is_the_first_of_seed_plus_i(sample, tmp_path, label):
    sample("--seed", "7", "--label", label)
    whole = stored(tmp_path / "samples")
    for i in range(4):
        sample("--seed", 7 + i, "--label", label, n=1, out=tmp_path / str(i))
        assert np.array_equal(stored(tmp_path / str(i))[0], whole[i])


def test_labels_by_name_and_number_are_the_same_and_classes_differ(sample, tmp_path):
    folders = {}
    for label in (*CLASSES, "0", "1", "2", "none", "all"):
        sample("--label", label, out=tmp_path / label)
        folders[label] = stored(tmp_path / label)
    for i, name in enumerate(CLASSES):
        assert np.array_equal(folders[name], folders[str(i)])
    assert len(np.unique([folders[name] for name in (*CLASSES, "none")], axis=0)) == 4
    assert np.array_equal(folders["all"], [folders[CLASSES[i % 3]][i] for i in range(4)])


def test_guidance_one_is_none_and_two_is_not(sample, tmp_path):
    for scale in ("1", "2"):
        sample("--label", "0", "--guidance", scale, out=tmp_path / scale)
    sample("--label", "0", out=tmp_path / "none")
    assert np.array_equal(stored(tmp_path / "1"), stored(tmp_path / "none"))
    assert not np.array_equal(stored(tmp_path / "2"), stored(tmp_path / "none"))


INFORMED = {name: entry.solver for name, entry in SOLVERS.items() if hasattr(entry.solver, "statistics")}


@pytest.mark.parametrize("solver", sorted(SOLVERS.keys() - INFORMED))
def test_every_solver_draws(sample, solver):
    assert sample("--solver", solver, n=1, nfe=3).exit_code == DONE


def test_json_is_the_record_alone_on_stdout(sample, tmp_path):
    result = sample("--json")
    assert json.loads(result.stdout) == {**record(tmp_path / "samples"), "out": str(tmp_path / "samples")}


# sample: going on


def test_a_finished_run_is_left_as_it_is(sample, tmp_path):
    sample()
    before = content(tmp_path / "samples")
    result = sample("--json")
    assert result.exit_code == DONE
    assert content(tmp_path / "samples") == before
    assert json.loads(result.stdout)["images"] == 4
    assert "all from before" in result.stderr


def test_another_run_is_refused_unless_overwritten(sample, tmp_path):
    sample()
    before = content(tmp_path / "samples")
    result = sample("--seed", "9", n=2)
    assert_refused(result, FAILED, "another run", "seed was 0, now 9", "n was 4, now 2", "choose another --out")
    assert content(tmp_path / "samples") == before
    assert sample("--seed", "9", "--overwrite", n=2).exit_code == DONE
    assert len(stored(tmp_path / "samples")) == 2


def test_overwrite_loses_nothing_when_the_new_run_cannot_start(sample, tmp_path):
    sample()
    before = content(tmp_path / "samples")
    for wrong in (
        ("--model", tmp_path / "missing"), ("--label", "dragon"), ("--guidance", "nan"), ("--guidance", "1e30"),
        ("--grid", "trailing"), ("--nfe", 20_000),
    ):  # fmt: skip
        assert sample(*wrong, "--overwrite", "--seed", "9").exit_code != DONE
        assert content(tmp_path / "samples") == before


@pytest.mark.parametrize("npz", [(), ("--npz",)], ids=["png", "npz"])
def test_overwrite_that_is_interrupted_before_its_first_image_loses_nothing(sample, tmp_path, interrupted, npz):
    sample(*npz)
    before = content(tmp_path / "samples")
    with interrupted(1):
        assert sample(*npz, "--seed", "9", "--overwrite").exit_code == INTERRUPTED
    assert content(tmp_path / "samples") == before


def test_overwrite_that_is_interrupted_goes_on_as_the_new_run(sample, tmp_path, interrupted):
    command = ("--seed", "9", "--batch-size", "1")
    sample()
    with interrupted(6):
        assert sample(*command, "--overwrite").exit_code == INTERRUPTED
    assert names(tmp_path / "samples") == ["000000.png", "000001.png", "SHA256SUMS", "grid.png", "run.json"]
    assert "2 drawn now" in sample(*command, "--overwrite").stderr
    sample(*command, out=tmp_path / "whole")
    assert np.array_equal(stored(tmp_path / "samples"), stored(tmp_path / "whole"))


def test_what_cannot_be_planned_is_told_before_there_is_a_folder(sample, tmp_path):
    assert_refused(sample("--grid", "trailing"), FAILED, "trailing counts the entries of a Discrete table")
    assert names(tmp_path) == []


def test_a_finished_run_is_extended(sample, tmp_path):
    sample(n=2)
    result = sample("--json", n=4)
    assert (json.loads(result.stdout)["found"], json.loads(result.stdout)["images"]) == (2, 4)
    assert "4 images in" in result.stderr.replace("\n", " ")
    sample(out=tmp_path / "whole")
    assert np.array_equal(stored(tmp_path / "samples"), stored(tmp_path / "whole"))
    assert record(tmp_path / "samples")["settings"] == record(tmp_path / "whole")["settings"]


@pytest.mark.parametrize("damage", ["emptied", "cut", "another"])
def test_damage_of_a_finished_run_is_told_and_mended(sample, tmp_path, damage):
    sample()
    before = content(tmp_path / "samples")
    path = tmp_path / "samples" / "000001.png"
    path.write_bytes({"emptied": b"", "cut": before[path.name][:-4], "another": before["000000.png"]}[damage])
    result = sample("--json")
    assert result.exit_code == DONE
    assert "damaged, made again: 000001.png" in result.stderr
    assert "1 drawn now" in result.stderr
    assert json.loads(result.stdout)["found"] == 3
    after = content(tmp_path / "samples")
    assert {name: after[name] for name in after if name != "run.json"} == {
        name: before[name] for name in before if name != "run.json"
    }
    assert "all from before" in sample().stderr


def test_two_at_once_do_not_mix(sample, tmp_path, monkeypatch):
    """The second begins when the first has made an image."""
    evaluate, refused = EDMModel._evaluate, []

    def second(self, *args):
        if (tmp_path / "samples" / "000000.png").exists() and not refused:
            refused.append(None)
            refused[0] = sample("--solver", "ddim", "--overwrite", n=2)
        return evaluate(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(EDMModel, "_evaluate", second)
        assert sample("--batch-size", "1").exit_code == DONE
    assert_refused(refused[0], FAILED, "samples is in use by another run: wait until that has ended, or choose")
    sample(out=tmp_path / "alone")
    assert np.array_equal(stored(tmp_path / "samples"), stored(tmp_path / "alone"))
    assert record(tmp_path / "samples")["settings"] == record(tmp_path / "alone")["settings"]


def test_a_full_disk_is_told_by_the_name_of_the_file(sample, tmp_path, monkeypatch):
    def full(source, target, real=os.replace):
        if str(target).endswith("000002.png"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        result = sample("--batch-size", "2")
    assert_refused(result, FAILED, "000002.png (No space left on device): make room there, or write elsewhere")
    assert (record(tmp_path / "samples")["status"], record(tmp_path / "samples")["images"]) == ("failed", 2)
    assert sample().exit_code == DONE
    sample(out=tmp_path / "whole")
    assert np.array_equal(stored(tmp_path / "samples"), stored(tmp_path / "whole"))


@pytest.mark.parametrize("flags", [(), ("--overwrite",)])
def test_the_images_of_others_are_not_clobbered(sample, tmp_path, flags):
    folder = tmp_path / "samples"
    folder.mkdir()
    (folder / "000000.png").write_bytes(png(np.zeros((4, 4, 3), np.uint8)))
    before = content(folder)
    assert_refused(sample(*flags), FAILED, "000000.png is not of this run", "choose another --out")
    assert content(folder) == before


def test_a_failure_half_way_keeps_what_was_made_and_the_next_run_goes_on(sample, tmp_path, monkeypatch):
    evaluate = EDMModel._evaluate
    calls = []

    def failing(self, *args):
        calls.append(1)
        if len(calls) == 6:
            raise RuntimeError("out of memory\nand many details")
        return evaluate(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(EDMModel, "_evaluate", failing)
        result = sample("--batch-size", "1")
    assert_refused(result, FAILED, "error: out of memory")
    assert "details" not in result.stderr
    folder = tmp_path / "samples"
    assert (record(folder)["status"], record(folder)["images"]) == ("failed", 2)
    assert names(folder) == ["000000.png", "000001.png", "SHA256SUMS", "grid.png", "run.json"]
    assert sample().exit_code == DONE
    sample(out=tmp_path / "whole")
    assert np.array_equal(stored(folder), stored(tmp_path / "whole"))


# Stalls at the given evaluation of the network, having said so.
STALLING = """
import signal, sys, time
from fewstep.__main__ import main
from fewstep.adapters.unet2d import EDMModel
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it starts in the background
evaluate, left = EDMModel._evaluate, int(sys.argv.pop(1))
def stalling(self, *args):
    global left
    left -= 1
    if not left:
        print("stalled", flush=True)
        time.sleep(600)
    return evaluate(self, *args)
EDMModel._evaluate = stalling
main()
"""


def interrupted(number, args):
    """Exit code and stderr of `fewstep sample` that got a signal during the second call for its fourth image."""
    with subprocess.Popen(
        [sys.executable, "-c", STALLING, "8", "sample", *map(str, args), "--batch-size", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        try:
            assert process.stdout.readline() == "stalled\n"
            process.send_signal(number)
            _, said = process.communicate(timeout=120)
        finally:
            process.kill()
    return process.returncode, said


@pytest.mark.skipif(os.name == "nt", reason="signals are those of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("npz", [False, True], ids=["png", "npz"])
def test_an_interruption_keeps_the_images_and_the_same_command_goes_on(model, tmp_path, npz, number):
    out = tmp_path / "samples"
    args = ["--model", model, "--n", 6, "--nfe", 2, "--label", "0", "--out", out, *["--npz"] * npz]
    code, said = interrupted(number, args)
    assert code == INTERRUPTED
    told = [line for line in said.splitlines() if not line.startswith("sampling")]
    assert told[1:] == [f"interrupted: 3 of 6 images in {out}; the same command goes on from there"]
    images = ["samples.npz"] if npz else [f"{i:06d}.png" for i in range(3)]
    assert names(out) == sorted([*images, "SHA256SUMS", "grid.png", "run.json"])
    assert (record(out)["status"], record(out)["images"]) == ("interrupted", 3)
    assert run("sample", *args).exit_code == DONE
    whole = tmp_path / "whole"
    run("sample", *args, "--out", whole)
    assert (record(out)["status"], record(out)["images"], record(out)["found"]) == ("done", 6, 3)
    assert names(out) == names(whole)
    for name in names(out):
        assert name in ("run.json", "SHA256SUMS") or (out / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.skipif(os.name == "nt", reason="signals are those of POSIX")
def test_a_killed_run_goes_on(model, tmp_path):
    out = tmp_path / "samples"
    args = ["--model", model, "--n", 6, "--nfe", 2, "--label", "0", "--out", out]
    assert interrupted(signal.SIGKILL, args)[0] == -signal.SIGKILL
    assert names(out) == [*(f"{i:06d}.png" for i in range(3)), "SHA256SUMS", "run.json"]
    assert record(out)["status"] == "running"
    assert run("sample", *args).exit_code == DONE
    run("sample", *args, "--out", tmp_path / "whole")
    assert record(out)["found"] == 3
    assert np.array_equal(stored(out), stored(tmp_path / "whole"))
    assert names(out) == names(tmp_path / "whole")
