"""`fewstep estimate`, and solvers that need its files."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cli.commands import DONE, FAILED, INTERRUPTED, USAGE, assert_refused, content, names, run
from fewstep.adapters.unet2d import EDMModel
from fewstep.statistics import load_statistics
from fewstep.table import SOLVERS
from tiny import CLASSES, SIDE

INFORMED = {name: entry.solver for name, entry in SOLVERS.items() if hasattr(entry.solver, "statistics")}


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


@pytest.mark.parametrize("kind", ["ems", "gamma"])
def test_an_interrupted_estimate_goes_on(model, data, files, kind, tmp_path, interrupted):
    path = tmp_path / f"{kind}.safetensors"
    command = ("estimate", kind, "--model", model, "--data", data, "--points", 8, "--samples", 8, "--out", path)
    with interrupted(6):
        result = run(*command)
    assert result.exit_code == INTERRUPTED
    points = {"ems": 2, "gamma": 5}[kind]  # of EMS, l and s are half a point each
    assert f"interrupted: {points} of 8 points are kept; the same command goes on" in result.stderr.replace("\n", " ")
    assert run(*command).exit_code == DONE
    assert names(tmp_path) == [path.name]
    one, other = map(load_statistics, (path, files[kind]))
    assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in one._columns())


def test_a_finished_estimate_is_read_and_a_file_of_others_is_refused(model, data, tmp_path, monkeypatch):
    path, picture = tmp_path / "gamma.safetensors", tmp_path / "mask.png"
    estimated(model, data, "gamma", tmp_path)
    picture.write_bytes(b"a picture")
    before = content(tmp_path)
    command = ("estimate", "gamma", "--model", model, "--data", data, "--points", 8, "--samples", 8, "--out")
    told = "is there, and is not what is asked for: choose another out (--out), or overwrite=True (--overwrite)"
    with monkeypatch.context() as patch:
        patch.setattr(EDMModel, "_evaluate", None)
        assert run(*command, path).exit_code == DONE
        assert_refused(run(*command, picture), FAILED, f"mask.png {told}")
        assert_refused(run(*command, path, "--guidance", 2), FAILED, f"gamma.safetensors {told}")
    assert content(tmp_path) == before
    assert run(*command, picture, "--overwrite").exit_code == DONE
    assert load_statistics(picture).fingerprint == load_statistics(path).fingerprint


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
