"""A tuned plan is data: what it holds is what runs, and what it cannot hold is refused."""

import dataclasses
import json
import math
import warnings

import numpy as np
import pytest
import torch

import fewstep as fs
from benchmarks.problems import gaussian
from fewstep.integrations.kdiffusion import History, sampler
from fewstep.solvers.evodiff.family import Family
from fewstep.solvers.tuned import Measured, Outcome, Tuned
from fewstep.solvers.tuned.measured import asked
from fewstep.statistics import describe

SCHEDULES = [fs.EDM(), fs.VPLinear(), fs.Flow(), fs.EDM(0.03, 14.0, data_std=2.0), fs.VPCosine()]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
ROUNDING = 1e-12  # a few operations of float64, of samples of size 1
CALLS = 6
OTHER = Family(center=0.4, rise=-0.3, surprise=0.5, reach=-0.5, trusted=0.7)


def tuned(schedule, calls=CALLS, family=OTHER, further=0.0, **rest):
    """Where it goes `further`, each call but the first is told a level that is so much cleaner than that of its x."""
    nodes = asked(schedule, family.nodes(schedule, calls), [further * (i > 0) for i in range(calls)])
    std = schedule.data_scale * math.exp(family.scale)
    measured = Measured.of(
        schedule, nodes, family.stages(nodes, schedule.data_scale, schedule.lam_range[1]), std, family
    )
    return Tuned({calls: measured}, describe(schedule), **rest)


def drawn(solver, schedule, **how):
    problem = gaussian(components=2)
    noise = fs.unit_noise(range(3), problem.shape, dtype=torch.float64)
    return fs.sample(problem.denoiser(schedule), noise, solver=solver, schedule=schedule, **how)


@every_schedule
@pytest.mark.parametrize("calls", [1, 2, 3, 5, 10])
def test_the_family_of_nothing_changed_is_the_default(schedule, calls):
    nodes = Family().nodes(schedule, calls)
    assert nodes == EVODIFF.grid(schedule, calls)
    assert Family().stages(nodes, schedule.data_scale, schedule.lam_range[1]) == list(EVODIFF.plan(schedule, nodes))


EVODIFF = fs.EVODiff()


@every_schedule
@pytest.mark.parametrize("calls", [2, 3, 5, 10])
def test_a_plan_of_the_default_as_data_is_the_default(schedule, calls, free_end):
    solver = tuned(schedule, calls, Family())
    torch.testing.assert_close(
        drawn(solver, schedule, nfe=calls), drawn(EVODIFF, schedule, nfe=calls), rtol=0, atol=ROUNDING
    )


@every_schedule
def test_the_model_is_told_the_levels_of_the_plan(schedule):
    """Of x as a denoiser expects it there, with the noise that it has."""
    further, told = 0.05, []

    def watched(x, t):
        told.append(schedule.node(t))
        return torch.zeros_like(x)

    noise = fs.unit_noise(range(1), (4,), dtype=torch.float64)
    fs.sample(watched, noise, nfe=CALLS, solver=tuned(schedule, further=further), schedule=schedule)
    nodes = OTHER.nodes(schedule, CALLS)[:CALLS]
    wanted = [node.lam + further * (i > 0) for i, node in enumerate(nodes)]
    assert [node.lam for node in told] == pytest.approx(np.clip(wanted, *schedule.lam_range).tolist())


@every_schedule
def test_a_level_that_is_told_changes_what_the_denoiser_says_and_nothing_else(schedule):
    """Of a denoiser that does not ask for the level."""
    noise = fs.unit_noise(range(2), (4,), dtype=torch.float64)

    def blind(x, t):
        return x / schedule.node(t).alpha * 0.3

    runs = [
        fs.sample(blind, noise, nfe=CALLS, solver=tuned(schedule, further=further), schedule=schedule)
        for further in (0.0, 0.05)
    ]
    torch.testing.assert_close(*runs, rtol=1e3 * ROUNDING, atol=1e3 * ROUNDING)


@every_schedule
@pytest.mark.parametrize("further", [0.0, 0.05])
def test_a_file_holds_all_of_it(schedule, further, tmp_path):
    report = (Outcome(CALLS, 0.2, 0.1, 0.5, 0.4, 0.6, 900, True), Outcome(9, 0.2, 0.3, 1.5, 1.0, 2.0, 900, False))
    solver = tuned(schedule, further=further, fingerprint="abc", facts={"seeds": [0, 1]}, report=report)
    solver.save(tmp_path / "plan.json")
    found = Tuned.load(tmp_path / "plan.json", schedule=schedule, fingerprint="abc")
    assert found == solver
    assert hash(found) == hash(solver)
    assert (found.report, found.facts) == (report, {"seeds": [0, 1]})
    assert torch.equal(drawn(found, schedule, nfe=CALLS), drawn(solver, schedule, nfe=CALLS))


@pytest.mark.parametrize("calls", [1, 3, 4, 7, 20])
@pytest.mark.parametrize("schedule", [fs.EDM(), fs.Flow()], ids=str)
def test_other_budgets_are_planned_as_the_tuned_one_was(calls, schedule):
    nodes, stages = fs.sampling.plan(schedule, tuned(schedule), nfe=calls)
    assert nodes == OTHER.nodes(schedule, calls)
    assert list(stages) == OTHER.stages(nodes, schedule.data_scale, schedule.lam_range[1])


def test_other_levels_are_planned_as_the_tuned_ones_were():
    schedule = fs.EDM()
    nodes = fs.karras(schedule, CALLS)
    assert list(tuned(schedule).plan(schedule, nodes)) == OTHER.stages(
        nodes, schedule.data_scale, schedule.lam_range[1]
    )


def test_where_the_default_was_no_worse_it_runs():
    schedule = fs.EDM()
    solver = tuned(schedule, report=(Outcome(8, 0.1, 0.2, 2.0, 1.5, 2.5, 9, False),))
    assert torch.equal(drawn(solver, schedule, nfe=8), drawn(EVODIFF, schedule, nfe=8))
    assert torch.equal(drawn(Tuned({}), schedule, nfe=5), drawn(EVODIFF, schedule, nfe=5))


def test_a_sample_does_not_depend_on_its_batch():
    schedule, problem = fs.EDM(), gaussian(components=2)
    noise = fs.unit_noise(range(3), problem.shape, dtype=torch.float64)
    denoise = problem.denoiser(schedule)

    def run(x):  # one by one: the denoiser's sums depend on the size of the batch
        each = fs.as_denoiser(lambda x, t: torch.cat([denoise(row[None], t) for row in x]), "sample", schedule)
        return fs.sample(each, x, nfe=CALLS, solver=tuned(schedule))

    assert torch.equal(run(noise), torch.cat([run(row[None]) for row in noise]))


ZERO_SNR = fs.Discrete([*np.exp(-np.linspace(0.001, 8, 999)), 0.0])  # sigma_max is 4,096: EDM's range ends at 80


@pytest.mark.parametrize(("schedule", "calls"), [(fs.VPLinear(), CALLS), (ZERO_SNR, 12)], ids=["VP", "zero SNR"])
@pytest.mark.parametrize("further", [0.0, 0.05, -0.05])
def test_a_plan_serves_k_diffusion_with_its_sigmas(schedule, calls, further):
    """x_0 + sigma noise is alpha x_0 + sigma noise over alpha: the same plan, in another form of x."""
    problem, solver = gaussian(components=2), tuned(schedule, calls, further=further)
    nodes = solver.nodes(schedule, calls)
    noise = fs.unit_noise(range(2), problem.shape, dtype=torch.float64)
    sigmas = torch.tensor([node.nsr for node in nodes], dtype=torch.float64)
    denoise = problem.denoiser(fs.EDM())
    start = noise * nodes[0].sigma / nodes[0].alpha
    got = sampler(solver)(lambda x, sigma: denoise(x, float(sigma[0])), start, sigmas, disable=True)
    wanted = fs.sample(problem.denoiser(schedule), noise, nfe=calls, solver=solver, schedule=schedule) / nodes[-1].alpha
    torch.testing.assert_close(got, wanted, rtol=0, atol=10 * nodes[0].nsr * ROUNDING)


@pytest.mark.parametrize("further", [0.0, 0.05])
def test_a_half_of_a_plan_is_a_run_of_its_own(further):
    """Whether a history is kept or not."""
    solver, problem = tuned(fs.Flow(), further=further), gaussian(components=2)
    denoise = problem.denoiser(fs.Flow())
    sigmas = torch.tensor([node.sigma for node in solver.nodes(fs.Flow(), CALLS)], dtype=torch.float64)
    x, history = fs.unit_noise(range(2), problem.shape, dtype=torch.float64), History()
    run = sampler(solver, flow=True)

    def halves(**kept):
        half = run(lambda x, sigma: denoise(x, float(sigma[0])), x, sigmas[:4], disable=True, **kept)
        return run(lambda x, sigma: denoise(x, float(sigma[0])), half, sigmas[3:], disable=True, **kept)

    assert torch.equal(halves(history=history), halves())


def test_a_callback_is_told_what_the_model_is():
    solver, told, heard = tuned(fs.Flow(), further=0.05), [], []
    sigmas = torch.tensor([node.sigma for node in solver.nodes(fs.Flow(), CALLS)])

    def model(x, sigma):
        told.append(sigma[0].item())
        return torch.zeros_like(x)

    sampler(solver, flow=True)(
        model, torch.ones(1, 4), sigmas, callback=lambda said: heard.append(said["sigma_hat"].item()), disable=True
    )
    assert heard == told
    assert told != sigmas[:CALLS].tolist()


def test_a_table_that_was_rounded_otherwise_is_the_model_s():
    """diffusers has its tables in float32: their ends are off by 1e-6, and a clock ends with its table."""
    products = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    fine, coarse = fs.Discrete(products), fs.Discrete(products * (1 + np.linspace(0, 1e-5, 1000)))
    for one, other in ((fine, coarse), (coarse, fine)):
        found = tuned(one, further=0.05).on(other)
        nodes, stages = fs.sampling.plan(other, found, nfe=CALLS)
        assert [node.lam for node in nodes] == pytest.approx(found.plans[CALLS].lams, abs=1e-4)
        assert stages[1].node != nodes[1]  # it is the plan's


def test_noise_on_the_way_is_refused():
    with pytest.raises(ValueError, match="than those that were measured"):
        fs.Stochastic(tuned(fs.EDM()), 0.3)
    assert fs.Stochastic(tuned(fs.EDM()), 0.0).plan(fs.EDM(), OTHER.nodes(fs.EDM(), CALLS))


def test_another_schedule_is_refused(tmp_path):
    solver = tuned(fs.EDM())
    solver.save(tmp_path / "plan.json")
    with pytest.raises(ValueError, match=r"tuned on EDM.*the run is on VPLinear.*tune for this schedule"):
        Tuned.load(tmp_path / "plan.json", schedule=fs.VPLinear())
    with pytest.raises(ValueError, match=r"tuned on EDM.*the run is on VPLinear"):
        drawn(solver, fs.VPLinear(), nfe=CALLS)
    drawn(dataclasses.replace(solver, schedule=None), fs.VPLinear(), nfe=CALLS)


def test_levels_that_its_schedule_has_not_are_refused(tmp_path):
    path = tmp_path / "plan.json"
    tuned(fs.EDM()).save(path)
    content = json.loads(path.read_text())
    _plan(content)["lams"][0] = -1e6
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"goes from half log-SNR -1e\+06"):
        Tuned.load(path, schedule=fs.EDM())
    with pytest.raises(ValueError, match=r"goes from half log-SNR -1e\+06"):
        drawn(Tuned.load(path), fs.EDM(), nfe=CALLS)


def test_another_model_is_warned_of(tmp_path):
    tuned(fs.EDM(), fingerprint="this, guidance 2").save(tmp_path / "plan.json")
    with pytest.warns(UserWarning, match="tuned on another model or guidance, this, guidance 2, not that"):
        Tuned.load(tmp_path / "plan.json", fingerprint="that")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Tuned.load(tmp_path / "plan.json", fingerprint="this, guidance 2")


def test_a_file_that_is_cut_off_anywhere_is_refused(tmp_path):
    path = tmp_path / "plan.json"
    tuned(fs.EDM()).save(path)
    whole = path.read_bytes().rstrip()
    for size in range(0, len(whole), 97):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="does not hold a plan of this fewstep"):
            Tuned.load(path)
    with pytest.raises(IsADirectoryError, match="is a folder: name the file in it"):
        Tuned.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="make it with fewstep tune"):
        Tuned.load(tmp_path / "none.json")


def _plan(content):
    return content["plans"][str(CALLS)]


DAMAGES = {
    "another format": lambda c: c.update(format="EMS"),
    "another version": lambda c: c.update(version=1),
    "a list": lambda c: c.update(plans=[]),
    "a stage missing": lambda c: _plan(c)["stages"].pop(),
    "a level missing": lambda c: _plan(c)["lams"].pop(1),
    "levels in disorder": lambda c: _plan(c)["lams"].reverse(),
    "no level": lambda c: _plan(c)["lams"].__setitem__(2, None),
    "other calls": lambda c: c["plans"].update({"9": c["plans"].pop(str(CALLS))}),
    "calls in words": lambda c: c["plans"].update(six=c["plans"].pop(str(CALLS))),
    "a weight in words": lambda c: _plan(c)["stages"][3].update(predict=["much"]),
    "a weight of NaN": lambda c: _plan(c)["stages"][3].update(predict=[math.nan]),
    "an infinite weight": lambda c: _plan(c)["stages"][3].update(correct=[math.inf]),
    "too many weights": lambda c: _plan(c)["stages"][4].update(predict=[0.1] * 5),
    "weights before there are differences": lambda c: _plan(c)["stages"][0].update(predict=[0.1]),
    "more foretold than known": lambda c: _plan(c)["stages"][1].update(foretold=[0.1]),
    "old weights that nothing foretells": lambda c: _plan(c)["stages"][3].update(foretold=[]),
    "no weights": lambda c: _plan(c)["stages"][3].pop("correct"),
    "a first call that is told another level": lambda c: _plan(c)["stages"][0].update(further=0.1),
    "a level that is told in words": lambda c: _plan(c)["stages"][3].update(further="more"),
    "data of no size": lambda c: _plan(c).update(data_std=0.0),
    "an unknown family": lambda c: _plan(c)["family"].update(colour=1.0),
    "a schedule in numbers": lambda c: c.update(schedule=3),
    "a report of something else": lambda c: c.update(report=[{"calls": 3}]),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_file_of_other_shapes_is_refused(tmp_path, damage):
    path = tmp_path / "plan.json"
    tuned(fs.EDM()).save(path)
    content = json.loads(path.read_text())
    damage(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="does not hold a plan of this fewstep"):
        Tuned.load(path)
