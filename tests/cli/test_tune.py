"""`fewstep tune`, and commands that run its plans."""

import json

import pytest

from cli.commands import DONE, FAILED, INTERRUPTED, USAGE, assert_refused, content, names, record, run, stored
from fewstep.adapters.unet2d import EDMModel
from fewstep.solvers import Tuned
from fewstep.tuning import cost
from tiny import CLASSES


@pytest.fixture
def tune(model, tmp_path):
    def call(*args, out=tmp_path / "plan.json", nfe="3", n=4, most=200):
        return run("tune", "--model", model, "--nfe", nfe, "--n", n, "--most", most, "--out", out, *args)

    return call


@pytest.fixture(scope="module")
def plan(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("plans") / "plan.json"
    done = run("tune", "--model", model, "--nfe", "3", "--n", 4, "--most", 200, "--guidance", 2, "--out", path)
    assert done.exit_code == DONE, done.stderr
    return path


def test_it_says_what_it_will_cost_and_what_it_gains(tune, tmp_path):
    told = tune("--json", nfe="3,2")
    assert told.exit_code == DONE, told.stderr
    found = json.loads(told.stdout)
    assert [each["calls"] for each in found["report"]] == [2, 3]
    assert f"at most {cost((2, 3), 4, 200):,} evaluations of a sample\n" in told.stderr
    assert "MB in all" in told.stderr
    assert names(tmp_path) == ["plan.json"]
    assert [each._asdict() for each in Tuned.load(tmp_path / "plan.json").report] == found["report"]


def test_it_is_a_table_for_people(tune):
    told = tune("--guidance", 3)
    assert told.exit_code == DONE, told.stderr
    assert "evaluations of a sample, each two of the network" in told.stderr
    assert "RMSE to the converged solution, seeds held out" in told.stdout


def test_an_interrupted_one_goes_on(tune, tmp_path, interrupted):
    with interrupted(180):
        result = tune("--json")
    assert result.exit_code == INTERRUPTED
    assert "evaluations are kept; the same command goes on from there" in result.stderr.replace("\n", " ")
    assert names(tmp_path) == ["plan.json.parts"]
    resumed, whole = tune("--json"), tune("--json", out=tmp_path / "whole.json")
    assert json.loads(resumed.stdout)["report"] == json.loads(whole.stdout)["report"]
    assert (tmp_path / "plan.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_a_finished_one_is_read_and_another_or_a_file_of_others_is_refused(tune, tmp_path, monkeypatch):
    assert tune().exit_code == DONE
    before = content(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(EDMModel, "_evaluate", None)
        again = tune()
        assert again.exit_code == DONE, again.stderr
        assert "besides reference and report, all from before" in again.stderr.replace("\n", " ")
        foreign = tmp_path / "someone.json"
        foreign.write_text('{"mine": 1}')
        told = "is there, and is not what is asked for: choose another out (--out), or overwrite=True (--overwrite)"
        for args, file in (({}, foreign), ({"nfe": "2"}, tmp_path / "plan.json")):
            assert_refused(tune(out=file, **args), FAILED, f"{file.name} {told}")
        for args in (("--guidance", "3"), ("--label", "star"), ("--seed", "5")):
            assert_refused(tune(*args), FAILED, f"plan.json {told}")
    assert content(tmp_path) == {**before, "someone.json": b'{"mine": 1}'}
    assert tune("--overwrite", nfe="2").exit_code == DONE
    assert [each.calls for each in Tuned.load(tmp_path / "plan.json").report] == [2]


def test_the_plan_of_all_classes_serves_each_and_that_of_one_no_other(tune, sample, tmp_path):
    """Which are numbers or names alike."""
    assert tune("--label", "1").exit_code == DONE
    assert tune(out=tmp_path / "all.json").exit_code == DONE
    assert "all from before" in tune("--label", CLASSES[1]).stderr
    for file, label, warned in (
        ("plan", CLASSES[1], False),
        ("plan", "2", True),
        ("plan", "all", True),
        ("all", "2", False),
    ):
        command = ("--solver", "tuned", "--plan", tmp_path / f"{file}.json", "--label", label)
        drawn = sample(*command, n=1, nfe=3, out=tmp_path / f"{file}-{label}")
        assert drawn.exit_code == DONE
        assert ("was tuned on another model or guidance" in drawn.stderr.replace("\n", " ")) == warned


def test_sample_and_compare_run_a_plan(sample, compare, plan, tmp_path):
    drawn = sample("--solver", "tuned", "--plan", plan, "--guidance", 2, nfe=3)
    assert drawn.exit_code == DONE, drawn.stderr
    assert "warning" not in drawn.stderr
    assert len(stored(tmp_path / "samples")) == 4
    assert record(tmp_path / "samples")["settings"]["plan"]
    assert compare("--plan", plan, "--guidance", 2, solvers="tuned,evodiff").exit_code == DONE


def test_another_guidance_is_warned_of(sample, plan):
    drawn = sample("--solver", "tuned", "--plan", plan, nfe=3)
    assert drawn.exit_code == DONE
    assert "warning: " in drawn.stderr
    assert "was tuned on another model or guidance" in drawn.stderr.replace("\n", " ")


def test_a_run_with_another_plan_is_another_run(sample, plan, tmp_path):
    command = ("--solver", "tuned", "--guidance", 2, "--plan")
    assert sample(*command, plan, nfe=3).exit_code == DONE
    other = tmp_path / "other.json"
    other.write_bytes(plan.read_bytes() + b"\n")
    assert_refused(sample(*command, other, nfe=3), FAILED, "holds another run (plan was")


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (("--nfe", "1,5"), "must be integers of at least 2"),
        (("--nfe", "few"), "must be integers"),
        (("--objective", "lpips"), "'lpips' is not known; choose from rmse, details"),
        (("--n", "2"), "--n"),
        (("--guidance", "2", "--label", "none"), "needs a class"),
    ],
)
def test_wrong_usage(tune, args, part):
    assert_refused(tune(*args), USAGE, part)


def test_a_plan_and_its_solver_go_together(sample, plan, tmp_path):
    assert_refused(sample("--solver", "tuned"), USAGE, "tuned needs a plan: fewstep tune --out FILE")
    assert_refused(sample("--plan", plan), USAGE, "is for the solver 'tuned'")
    assert_refused(sample("--solver", "tuned", "--plan", tmp_path / "none"), FAILED, "no file", "make it with fewstep")
    cut = tmp_path / "cut.json"
    cut.write_bytes(plan.read_bytes()[:-40])
    assert_refused(sample("--solver", "tuned", "--plan", cut), FAILED, "does not hold a plan")
