"""The order of the last steps, where it is chosen: never much worse than a lower one, and no lower than it pays."""

import numpy as np
import pytest
import torch

import fewstep as fs
from benchmarks.last_steps import FAMILIES, LAWS, SD, STOCHASTIC, TOLERANCE, endings, ratios
from fewstep.solvers import dpm_solver
from fewstep.solvers.core import last_steps

BUDGETS = (5, 12)
TABLE = fs.Discrete(SD.alphas_cumprod)  # as one has it, without the data's scale
EVERY = FAMILIES | STOCHASTIC


@pytest.mark.parametrize("name", EVERY)
def test_it_is_at_most_5_percent_worse_than_any_lower_order(name):
    """On every schedule, grid, end and budget of the battery, smooth or sharp."""
    for law in [None] if name in STOCHASTIC else LAWS.values():
        found = list(endings(EVERY[name], law, BUDGETS))
        assert [each for each in found if each.excess > TOLERANCE] == []
        # In the mean it is better than order 1, and in data prediction than each.
        in_noise = getattr(EVERY[name].make(1), "field", "data") == "noise"
        compared = range(1, 2 if in_noise else EVERY[name].highest + 1)
        assert max(ratios(found, order)[0] for order in compared) < 1


# What it was found by


def gaussian_run(solver, schedule, nfe, std, grid=None):
    """The standard deviation that comes out, and the RMSE to the solution, which scales the noise by `std`."""
    noise = fs.unit_noise(range(16), (64,), dtype=torch.float64)

    def denoiser(x, t):
        _, alpha, sigma = schedule.node(t)
        return x * (alpha * std**2 / ((alpha * std) ** 2 + sigma**2))

    got = fs.sample(denoiser, noise, nfe=nfe, solver=solver, schedule=schedule, grid=grid, seeds=range(16))
    return float(got.std()), float((got - std * noise).square().mean().sqrt())


@pytest.mark.parametrize("nfe", [5, 10, 20])
def test_sa_solver_keeps_its_spread_on_stable_diffusions_table(nfe):
    """Its own grid ends there in a step from 0.37 to 0.03, which at order 2 leaves 5 times the spread."""
    chosen, lowest, fixed = (gaussian_run(fs.SASolver(final_order=f), TABLE, nfe, 0.44)[0] for f in (None, 1, 2))
    assert abs(chosen - 0.44) < 1.1 * abs(lowest - 0.44)
    assert chosen < 0.44 < 4 * 0.44 < fixed


@pytest.mark.parametrize("nfe", [5, 8, 10, 20])
def test_sa_solver_keeps_its_spread_on_the_focused_levels_of_a_flow(nfe):
    """There two steps and more are long: with order 1 in the last alone it has 3 times the spread in 10 calls."""
    chosen, _ = gaussian_run(fs.SASolver(), fs.Flow(shift=3.0), nfe, 0.5, grid=fs.focused)
    assert chosen < 1.2 * 0.5


@pytest.mark.parametrize("nfe", [5, 10, 20])
def test_unipc_2_on_a_table_is_better_than_ddim(nfe):
    """It was worse."""
    ddim, unipc = (gaussian_run(solver, TABLE, nfe, 0.5)[1] for solver in (fs.DDIM(), fs.UniPC(order=2)))
    assert unipc < ddim


# What it is


@pytest.mark.parametrize("name", ["DPM-Solver++ 2M", "DPM-Solver 2", "UniPC-2", "SDE-DPM-Solver++ 2M"])
def test_a_long_step_has_order_1_and_a_short_one_more(name):
    """From sigma = 1, twice the data's, by the factor e^0.4 or e^4; all steps before are of e^0.5."""
    family, lams = EVERY[name], np.arange(-8, 1) * 0.5
    orders = []
    for length in (0.4, 4.0):
        sigmas = np.exp(-np.append(lams, lams[-1] + length))
        stages = family.make(None).plan(fs.EDM(), fs.from_times(fs.EDM(), sigmas.tolist()))
        orders.append(len(stages[-1].move.weights))
    assert orders[0] > orders[1] == 1


def test_where_no_order_could_differ_nothing_is_compared():
    nodes = fs.log_snr(fs.EDM(), 2, to_zero=True)  # one noisy step and the closing one
    plan = fs.DPMSolverPP(3).plan(fs.EDM(), nodes)
    assert plan == fs.DPMSolverPP(3, final_order=1).plan(fs.EDM(), nodes)


def test_units_do_not_matter():
    """Data 100 times as large, with all noise levels 100 times as high, are ended alike."""
    for steps in range(4, 20):
        chosen = []
        for unit in (1.0, 100.0):
            schedule = fs.EDM(0.03 * unit, 15 * unit, data_std=0.5 * unit)
            stages = fs.UniPC(3).plan(schedule, fs.karras(schedule, steps))
            chosen.append([len(stage.move.weights) for stage in stages])
        assert chosen[0] == chosen[1]


@pytest.mark.parametrize("steps", [10, 100])
def test_a_plan_computes_its_rows_once(monkeypatch, steps):
    """Orders differ in the last steps alone, so that comparing three adds a few rows to a plan, not two plans."""
    calls = []
    row = dpm_solver.multistep_row
    monkeypatch.setattr(dpm_solver, "multistep_row", lambda *args: calls.append(args) or row(*args))
    fs.DPMSolverPP(3).plan(fs.EDM(), fs.log_snr(fs.EDM(), steps, to_zero=False))
    assert len(calls) <= steps + 3


@pytest.mark.parametrize("solver", [fs.SASolver(), fs.SDEDPMSolverPP(3), fs.SASolver(mode="PECE", tau=0.5)])
def test_noise_is_carried_in_few_rows(monkeypatch, solver):
    """Their products, which is all that the spread at the end depends on, are those of a row for each draw."""
    nodes, errors = solver.grid(fs.VPLinear(), 60), []
    norm = np.linalg.norm
    monkeypatch.setattr(
        last_steps.np.linalg, "norm", lambda *args, **kw: errors.append(norm(*args, **kw)) or errors[-1]
    )
    for rows in (8, 1000):
        monkeypatch.setattr(last_steps, "ROWS", rows)
        solver.plan(fs.VPLinear(), nodes)
    few, many = errors[: len(errors) // 2], errors[len(errors) // 2 :]
    assert len(few) > 2
    for a, b in zip(few, many, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)
