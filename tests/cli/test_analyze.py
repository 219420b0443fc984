"""`fewstep analyze`."""

import importlib.util
import json

import pytest

from cli.commands import DONE, FAILED, USAGE, assert_refused, run

PLOTS = importlib.util.find_spec("matplotlib") is not None


@pytest.fixture
def analyze(model):
    return lambda *args: run("analyze", "--model", model, "--n", 2, "--levels", 5, *args)


def test_it_is_a_table_by_noise_level(analyze):
    told = analyze("--json")
    assert told.exit_code == DONE, told.stderr
    found = json.loads(told.stdout)
    levels = [row["sigma / alpha"] for row in found["levels"]]
    assert levels == pytest.approx([20 * (0.002 / 20) ** (i / 4) for i in range(5)])  # the model's own range
    left = [row["nats left"] for row in found["levels"]]
    assert left == sorted(left, reverse=True)
    assert left[-1] == 0
    assert "half of it is decided by sigma / alpha = " in told.stderr


def test_people_read_it_too(analyze):
    told = analyze("--guidance", 2, "--label", "star")
    assert told.exit_code == DONE, told.stderr
    assert "variance" in told.stdout


def test_it_tells_what_steps_leave_and_what_the_papers_weigh(analyze):
    told = analyze("--json", "--nfe", 4, "--single-steps")
    assert told.exit_code == DONE, told.stderr
    found = json.loads(told.stdout)
    assert [len(found[part]) for part in ("variance that steps have added", "error of reconstruction")] == [4, 4]
    first, *_, last = found["what the papers' rule weighs"]
    assert first["eta, paper"] is None
    assert 0.5 <= last["eta, paper"] <= 1
    assert set(found["RMSE of the sample"][0]) == {"evodiff", "ddim", "dpmpp-2m"}
    assert [row["calls"] for row in found["RMSE of single steps"]] == [6, 8, 10, 14, 20]
    assert found["RMSE of single steps"][0].keys() == {"calls", "FD", "RE, low", "RE, high"}


@pytest.mark.skipif(not PLOTS, reason="needs the extra plot")
def test_it_is_a_picture(analyze, tmp_path):
    assert analyze("--nfe", 3, "--out", tmp_path / "entropy.png").exit_code == DONE
    assert (tmp_path / "entropy.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(PLOTS, reason="matplotlib is installed")
def test_a_picture_needs_matplotlib(analyze, tmp_path):
    assert_refused(analyze("--out", tmp_path / "entropy.png"), FAILED, "pip install 'fewstep[plot]'")


@pytest.mark.parametrize(("args", "part"), [(("--out", "entropy.pdf"), ".png"), (("--levels", 2), "--levels")])
def test_wrong_usage(analyze, args, part):
    assert_refused(analyze(*args), USAGE, part)
