"""The command line: what it writes, what it says, how it fails, and how it goes on."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import fewstep
from fewstep.adapters.edm import EDMModel
from fewstep.cli import app
from fewstep.cli.options import SOME_GRIDS, SOME_SOLVERS
from fewstep.pictures import png, read
from fewstep.table import FAMILIES, GRID_FAMILIES, GRIDS, SOLVERS, call
from tiny import CLASSES, DAMAGES, SIDE, save_model

DONE, FAILED, USAGE = 0, 1, 2


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


def run(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture
def sample(model, tmp_path):
    """`fewstep sample` with few calls and images, into a folder of the test's own unless another is given."""

    def call(*args, n=4, nfe=2, out=tmp_path / "samples"):
        return run("sample", "--model", model, "--n", n, "--nfe", nfe, "--out", out, *args)

    return call


@pytest.fixture
def compare(model, tmp_path):
    def call(*args, n=2, nfe="1,3", solvers="ddim,heun", out=tmp_path / "compare.png"):
        return run("compare", "--model", model, "--n", n, "--nfe", nfe, "--solvers", solvers, "--out", out, *args)

    return call


def stored(folder):
    return np.stack([read(path) for path in sorted(folder.glob("[0-9]*.png"))])


def record(folder):
    return json.loads((folder / "run.json").read_text())


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_refused(result, code, *parts):
    """One line that begins with "error", and no traceback."""
    assert result.exit_code == code
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.lower().startswith("error")]
    for part in parts:
        assert part in line
    if code == FAILED:
        assert result.stderr.splitlines()[-1] == line
    else:
        assert "--help" in result.stderr


# sample: what it writes


def test_a_run_is_images_a_sheet_and_a_record(sample, model, tmp_path):
    result = sample("--solver", "heun", "--seed", "5", "--label", "square", "--guidance", "2", "--grid", "karras")
    assert result.exit_code == DONE
    folder = tmp_path / "samples"
    assert names(folder) == [*(f"{i:06d}.png" for i in range(4)), "grid.png", "run.json"]
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
    assert names(tmp_path / "npz") == ["grid.png", "run.json", "samples.npz"]
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


# estimate


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Images of twice the model's side: they are shrunk."""
    path = tmp_path_factory.mktemp("data") / "images.npz"
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (12, 2 * SIDE, 2 * SIDE, 3), dtype=np.uint8)
    np.savez(path, images=images, labels=generator.integers(0, len(CLASSES), 12))
    return path


def estimated(model, data, kind, folder, *args):
    path = folder / f"{kind}.safetensors"
    result = run(
        "estimate", kind, "--model", model, "--data", data, "--points", 8, "--samples", 8, "--out", path, *args
    )
    assert result.exit_code == DONE, result.stderr
    return path


@pytest.fixture(scope="module")
def files(model, data, tmp_path_factory):
    return {kind: estimated(model, data, kind, tmp_path_factory.mktemp("statistics")) for kind in ("ems", "gamma")}


@pytest.mark.parametrize("solver", INFORMED)
def test_every_solver_that_needs_statistics_draws_with_them_and_refuses_without(sample, files, solver, tmp_path):
    kind = type(INFORMED[solver].statistics).__name__
    command = f"fewstep estimate {kind.lower()} --out FILE"
    assert_refused(sample("--solver", solver), USAGE, f"{solver} needs one file of {kind}", command)
    result = sample("--solver", solver, "--statistics", files[kind.lower()], n=1, nfe=3)
    assert result.exit_code == DONE, result.stderr


def test_statistics_of_another_model_are_refused(sample, model, data, tmp_path):
    plain = estimated(model, data, "gamma", tmp_path, "--label", "none")
    result = sample("--solver", "analytic-dpm", "--statistics", plain)
    assert_refused(result, FAILED, "was estimated from another model", "no classes", "estimate again")


def test_a_run_is_not_continued_with_other_statistics(sample, files, model, data, tmp_path):
    arguments = ("--solver", "analytic-dpm", "--label", "all")
    assert sample(*arguments, "--statistics", files["gamma"], n=2).exit_code == DONE
    other = estimated(model, data, "gamma", tmp_path, "--seed", 5)
    result = sample(*arguments, "--statistics", other, n=2)
    assert_refused(result, FAILED, "another run", "statistics was", "choose another --out")


def test_a_run_is_not_continued_with_other_weights(sample, model, tmp_path):
    assert sample(n=2).exit_code == DONE
    weights = model / "diffusion_pytorch_model.safetensors"
    before = weights.read_bytes()
    try:
        tensors = load_file(weights)
        save_file({name: tensor * 1.01 for name, tensor in tensors.items()}, weights)
        assert_refused(sample(n=2), FAILED, "another run", "weights was", "choose another --out")
    finally:
        weights.write_bytes(before)


@pytest.mark.parametrize(
    ("file", "change", "named"),
    [
        ("config.json", {"norm_eps": 0.1}, "network was"),
        ("fewstep.json", {"sigma_max": 5.0}, "schedule was"),
        ("fewstep.json", {"classes": ["star", "square", "circle"]}, "classes was"),
    ],
)
def test_a_run_is_not_continued_with_another_model_of_the_same_weights(sample, model, file, change, named):
    assert sample(n=2).exit_code == DONE
    before = (model / file).read_text()
    try:
        (model / file).write_text(json.dumps({**json.loads(before), **change}))
        assert_refused(sample(n=2), FAILED, "another run", named, "choose another --out")
    finally:
        (model / file).write_text(before)


def test_statistics_that_nobody_asked_for_are_refused(sample, files):
    assert_refused(sample("--statistics", files["ems"]), USAGE, "holds statistics that no solver asked for")


def test_compare_takes_several_files(compare, files):
    result = compare(
        "--statistics", files["ems"], "--statistics", files["gamma"], solvers="ddim,dpm-solver-v3-2,analytic-dpm"
    )
    assert result.exit_code == DONE, result.stderr


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (("--label", "cat"), ("'cat' must be 'all' or 'none'",)),
        (("--label", "none", "--guidance", "2"), ("2 needs classes",)),
        (("--data", "none.npz"), ("no file none.npz",)),
    ],
)
def test_an_estimate_that_cannot_be_made_is_refused(model, data, tmp_path, args, parts):
    result = run("estimate", "gamma", "--model", model, "--data", data, "--out", tmp_path / "g.safetensors", *args)
    assert_refused(result, FAILED if "--data" in args else USAGE, *parts)
    assert not (tmp_path / "g.safetensors").exists()


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
    for wrong in (("--model", tmp_path / "missing"), ("--label", "dragon"), ("--guidance", "nan")):
        assert sample(*wrong, "--overwrite", "--seed", "9").exit_code != DONE
        assert content(tmp_path / "samples") == before


@pytest.mark.parametrize("flags", [(), ("--overwrite",)])
def test_the_images_of_others_are_not_clobbered(sample, tmp_path, flags):
    folder = tmp_path / "samples"
    folder.mkdir()
    (folder / "000000.png").write_bytes(png(np.zeros((4, 4, 3), np.uint8)))
    before = content(folder)
    assert_refused(sample(*flags), FAILED, "000000.png is not of a run", "choose another --out")
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
    assert names(folder) == ["000000.png", "000001.png", "grid.png", "run.json"]
    assert sample().exit_code == DONE
    sample(out=tmp_path / "whole")
    assert np.array_equal(stored(folder), stored(tmp_path / "whole"))


# Stalls at the given evaluation of the network, having said so.
STALLING = """
import signal, sys, time
from fewstep.adapters.edm import EDMModel
from fewstep.cli import app
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
app()
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
@pytest.mark.parametrize("npz", [False, True], ids=["png", "npz"])
def test_ctrl_c_keeps_the_images_and_the_same_command_goes_on(model, tmp_path, npz):
    out = tmp_path / "samples"
    args = ["--model", model, "--n", 6, "--nfe", 2, "--label", "0", "--out", out, *["--npz"] * npz]
    code, said = interrupted(signal.SIGINT, args)
    assert code == FAILED
    assert "interrupted: 3 of 6 images" in said.replace("\n", "")
    assert "Traceback" not in said
    images = ["samples.npz"] if npz else [f"{i:06d}.png" for i in range(3)]
    assert names(out) == sorted([*images, "grid.png", "run.json"])
    assert (record(out)["status"], record(out)["images"]) == ("interrupted", 3)
    assert run("sample", *args).exit_code == DONE
    whole = tmp_path / "whole"
    run("sample", *args, "--out", whole)
    assert (record(out)["status"], record(out)["images"], record(out)["found"]) == ("done", 6, 3)
    assert names(out) == names(whole)
    for name in names(out):
        assert name == "run.json" or (out / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.skipif(os.name == "nt", reason="signals are those of POSIX")
def test_a_killed_run_goes_on(model, tmp_path):
    out = tmp_path / "samples"
    args = ["--model", model, "--n", 6, "--nfe", 2, "--label", "0", "--out", out]
    assert interrupted(signal.SIGKILL, args)[0] == -signal.SIGKILL
    assert names(out) == [*(f"{i:06d}.png" for i in range(3)), "run.json"]
    assert record(out)["status"] == "running"
    assert run("sample", *args).exit_code == DONE
    run("sample", *args, "--out", tmp_path / "whole")
    assert record(out)["found"] == 3
    assert np.array_equal(stored(out), stored(tmp_path / "whole"))
    assert names(out) == names(tmp_path / "whole")


# How commands fail


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_model_is_one_error_and_nothing_is_written(tmp_path, kind):
    folder = save_model(tmp_path / "tiny")
    damage, message = DAMAGES[kind]
    damage(folder)
    result = run("sample", "--model", folder, "--out", tmp_path / "samples")
    assert_refused(result, FAILED, "error: ", message)
    assert names(tmp_path) == ["tiny"]


def test_a_missing_model_is_one_error_and_nothing_is_written(sample, compare, tmp_path):
    missing = tmp_path / "missing"
    for command in (sample, compare):
        assert_refused(command("--model", missing), FAILED, str(missing), "give a folder", "cifar32")
    assert names(tmp_path) == []


def test_an_output_below_a_file_is_one_error(sample, compare, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "deeper"):
        assert_refused(sample(out=out), FAILED, f"cannot write to {out}", "choose another --out")
    assert_refused(compare(out=tmp_path / "file" / "x.png"), FAILED, "cannot write to", "choose another --out")
    assert content(tmp_path) == {"file": b"mine"}


def test_a_folder_in_the_place_of_the_picture_is_refused_before_the_work(compare, tmp_path, monkeypatch):
    (tmp_path / "x.png").mkdir()
    monkeypatch.setattr(EDMModel, "_evaluate", None)
    assert_refused(compare(out=tmp_path / "x.png"), FAILED, "it is a folder: choose another --out")


def test_what_cannot_be_planned_is_told_before_the_long_run(compare, monkeypatch):
    monkeypatch.setattr(EDMModel, "_evaluate", None)
    result = compare("--grid", "ays-sd15", solvers="ddim,evodiff")
    assert_refused(result, FAILED, "ays(model='sd15')")


def test_points_of_an_estimate_are_enough_to_be_differenced(tmp_path):
    assert_refused(run("estimate", "ems", "--points", 7, "--out", tmp_path / "e.safetensors"), USAGE, "--points", "8")


WRONG = {
    "no calls": (("--nfe", "0"), "--nfe"),
    "no images": (("--n", "0"), "--n"),
    "a word for a number": (("--n", "many"), "--n"),
    "no batch": (("--batch-size", "0"), "--batch-size"),
    "seed below": (("--seed", "-1"), "--seed"),
    "seed above": (("--seed", 2**64), "--seed"),
    "solver": (("--solver", "euler"), "--solver: 'euler' is not known; choose from evodiff"),
    "grid": (("--grid", "uniform"), "--grid: 'uniform' is not known; choose from focused"),
    "label": (
        ("--label", "dragon"),
        "--label: 'dragon' is not a class of this model; choose from 'none', 'all', circle",
    ),
    "label number": (("--label", "3"), "--label: '3'"),
    "device": (("--device", "gpu"), "--device: 'gpu' is not a device; choose cpu"),
    "guidance of nothing": (("--label", "none", "--guidance", "2"), "--guidance: 2 needs a class"),
    "guidance infinite": (("--guidance", "inf"), "--guidance: inf must be finite"),
    "flag": (("--colour",), "--colour"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_usage_of_sample_names_the_option(sample, tmp_path, kind):
    args, message = WRONG[kind]
    assert_refused(sample(*args), USAGE, message)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--nfe", "5,x"), "--nfe: '5,x' must be integers of at least 1, like 5,8,10"),
        (("--nfe", "5,0"), "--nfe: '5,0'"),
        (("--nfe", ""), "--nfe: ''"),
        (("--nfe", "5,,8"), "--nfe: '5,,8'"),
        (("--solvers", "ddim,euler"), "--solvers: 'euler' is not known; choose from evodiff"),
        (("--solvers", ""), "--solvers: '' is not known"),
        (("--label", "dragon"), "--label: 'dragon'"),
        (("--out", "table.csv"), "--out: 'table.csv' must end in .png"),
        (("--n", "0"), "--n"),
    ],
)
def test_wrong_usage_of_compare_names_the_option(compare, tmp_path, args, message):
    assert_refused(compare(*args), USAGE, message)
    assert names(tmp_path) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_an_unavailable_device_is_one_line(sample, compare, tmp_path):
    for command in (sample, compare):
        assert_refused(command("--device", "cuda"), FAILED, "error: device 'cuda' cannot be used here", "use 'cpu'")
    assert names(tmp_path) == []


def test_debug_shows_where_an_error_comes_from(sample, tmp_path):
    result = sample("--model", tmp_path / "missing", "--debug")
    assert isinstance(result.exception, FileNotFoundError)
    assert "error:" not in result.stderr


def test_an_unexpected_error_is_one_line_too(sample, monkeypatch):
    monkeypatch.setattr(EDMModel, "conditioned", lambda *_: {}["lost"])
    assert_refused(sample(), FAILED, "error: KeyError: 'lost' (unexpected; --debug shows where)")


def test_what_looks_like_markup_is_printed_as_it_is(sample, tmp_path):
    assert_refused(sample("--model", "[bold]x[/bold]"), FAILED, "no model '[bold]x[/bold]'")
    folder = tmp_path / "[red]"
    assert str(folder) in sample(out=folder).stderr.replace("\n", "")


# compare


def test_comparison_is_a_picture_and_a_table(compare, tmp_path):
    result = compare()
    assert result.exit_code == DONE
    assert names(tmp_path) == ["compare.png"]
    picture = read(tmp_path / "compare.png")
    # At least two rows of images of 64 pixels, and three columns of two of them.
    assert picture.shape[0] > 2 * 64
    assert picture.shape[1] > 3 * 2 * 64
    for word in ("ddim", "heun", "1 call", "3 calls", "RMSE"):
        assert word in result.stdout
    assert str(tmp_path / "compare.png") in result.stderr.replace("\n", "")


def test_json_has_every_solver_at_every_budget_and_nothing_else_is_on_stdout(compare, tmp_path):
    told = json.loads(compare("--json", "--guidance", "2").stdout)
    cells = told["cells"]
    assert [(c["solver"], c["nfe"]) for c in cells] == [(s, b) for s in ("ddim", "heun") for b in (1, 3)]
    assert all(c["calls"] == c["nfe"] for c in cells)
    assert all(c["seconds"] > 0 and c["rmse"] > 0 for c in cells)
    assert told["out"] == str(tmp_path / "compare.png")
    assert (told["guidance"], told["n"]) == (2.0, 2)


def test_distances_are_those_of_the_library_from_the_same_noise(compare, model):
    (cell,) = json.loads(compare("--json", "--seed", "4", "--label", "1", solvers="unipc-2", nfe="3").stdout)["cells"]
    loaded = fewstep.adapters.load_model(model, batch=8)
    noise = fewstep.unit_noise([4, 5], loaded.shape)
    exact, got = (
        fewstep.sample(loaded.conditioned(1), noise, nfe=nfe, solver=solver, schedule=loaded.schedule)
        for nfe, solver in ((128, fewstep.UniPC(order=3)), (3, fewstep.UniPC(order=2)))
    )
    assert cell["rmse"] == pytest.approx((got - exact).double().square().mean().sqrt().item(), rel=1e-9)


@pytest.mark.parametrize("n", [1, 3])
def test_one_solver_one_budget_and_few_images_are_enough(compare, tmp_path, n):
    assert compare(n=n, solvers="unipc-2-bh1", nfe="1").exit_code == DONE
    assert (tmp_path / "compare.png").exists()


# The rest


def test_models_are_listed(model):
    told = run("models")
    assert told.exit_code == DONE
    assert "cifar32" in told.stdout
    assert "FOLDER" in told.stdout
    assert list(json.loads(run("models", "--json").stdout)) == ["cifar32"]


def test_solvers_are_listed_by_family():
    told = run("solvers")
    assert told.exit_code == DONE
    rows = {row["name"]: row for row in json.loads(run("solvers", "--json").stdout)}
    assert rows.keys() == SOLVERS.keys()
    assert FAMILIES.keys() == {type(entry.solver) for entry in SOLVERS.values()}
    for name, entry in SOLVERS.items():
        line = next(line for line in told.stdout.splitlines() if line[2:].startswith(f"{name} "))
        assert line.startswith("*") == (name in SOME_SOLVERS)
        assert line.endswith(f" {call(entry.solver)}")
        assert rows[name]["calls"] == entry.calls
        assert f"\n{rows[name]['family']}: {rows[name]['use']}\n" in told.stdout


def test_grids_are_listed_by_family():
    told = run("grids")
    assert told.exit_code == DONE
    rows = {row["name"]: row for row in json.loads(run("grids", "--json").stdout)}
    assert rows.keys() == GRIDS.keys()
    for family, members in GRID_FAMILIES.items():
        part = told.stdout.split(f"\n{family}:\n")[1].split("\n\n")[0]
        for name, grid in members.items():
            assert rows[name]["python"] == repr(grid)
            assert f" {name} " in part
            assert rows[name]["use"] in part


@pytest.mark.parametrize(
    ("some", "known", "command"), [(SOME_SOLVERS, SOLVERS, "solvers"), (SOME_GRIDS, GRIDS, "grids")]
)
def test_the_help_names_some_that_there_are(some, known, command):
    assert set(some) < set(known)
    for asking in ("sample", "compare"):
        words = " ".join(run(asking, "--help").stdout.split()).replace("- ", "-")
        assert f"{', '.join(some)}; `fewstep {command}` lists all" in words


def test_version_and_help():
    assert run("--version").stdout == fewstep.__version__ + "\n"
    told = run("--help")
    assert told.exit_code == DONE
    for command in ("sample", "compare", "models", "solvers", "grids", "estimate"):
        assert command in told.stdout
        assert run(command, "--help").exit_code == DONE


def test_no_command_shows_the_help_and_is_wrong_usage():
    result = run()
    assert result.exit_code == USAGE
    assert "Commands" in result.output


@pytest.mark.parametrize(
    ("missing", "args", "extra"),
    [
        ("typer", ["--help"], "fewstep[cli,diffusers]"),
        ("rich", ["--help"], "fewstep[cli,diffusers]"),
        ("PIL", ["sample"], "fewstep[cli]"),
        ("diffusers", ["sample"], "fewstep[diffusers]"),
    ],
)
def test_a_missing_extra_is_named(tmp_path, missing, args, extra):
    code = f"import sys; sys.modules[{missing!r}] = None; from fewstep.cli import app; app({args!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == FAILED
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert line.endswith(f"pip install '{extra}'")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "args", [["--help"], ["--version"], ["sample", "--help"], ["estimate", "ems", "--help"], ["models"]]
)
def test_help_needs_no_torch(args):
    code = f"import sys; sys.modules.update(torch=None, numpy=None); from fewstep.cli import app; app({args!r})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_fewstep_needs_no_extra():
    heavy = ("diffusers", "safetensors", "typer", "rich", "PIL", "scipy")
    code = f"import sys; sys.modules.update(dict.fromkeys({heavy!r})); import fewstep, fewstep.adapters"
    subprocess.run([sys.executable, "-c", code], check=True)
