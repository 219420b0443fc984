"""How commands fail: one line and a remedy."""

import os
import signal
import subprocess
import sys

import pytest
import torch

from cli.commands import FAILED, INTERRUPTED, USAGE, assert_refused, content, names, run
from fewstep.adapters.unet2d import EDMModel
from tiny import DAMAGES, save_model


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
    "no folder": (("--out", ""), "--out': is empty"),
    "no statistics": (("--statistics", ""), "--statistics': is empty"),
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
        (("--out", ""), "--out': is empty"),
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


# Stalls as the given module is imported, having said so.
STALLING = """
import signal, sys, time
from fewstep.__main__ import main
signal.signal(signal.SIGINT, signal.default_int_handler)
class Stalling:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == module:
            print("stalled", flush=True)
            time.sleep(600)
module = sys.argv.pop(1)
sys.meta_path.insert(0, Stalling)
main()
"""


@pytest.mark.skipif(os.name == "nt", reason="signals are those of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("module", ["typer", "torch", "safetensors.torch"])
def test_an_interruption_at_the_start_is_one_line_too(model, tmp_path, module, number):
    command = [sys.executable, "-c", STALLING, module, "sample", "--model", str(model), "--out", str(tmp_path / "s")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "stalled\n"
            process.send_signal(number)
            _, said = process.communicate(timeout=120)
        finally:
            process.kill()
    assert (process.returncode, said) == (INTERRUPTED, "interrupted\n")
    assert names(tmp_path) == []


def test_an_interruption_of_any_command_is_one_line(compare, interrupted):
    with interrupted(1):
        result = compare()
    assert result.exit_code == INTERRUPTED
    assert result.stderr.splitlines()[-1] == "interrupted"
    assert "Traceback" not in result.stderr
