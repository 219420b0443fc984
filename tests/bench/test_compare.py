"""The comparison: the same noise, true counts, a distance that is what it says."""

import numpy as np
import pytest
import torch

import fewstep as fs
from benchmarks.problems import gaussian
from fewstep.adapters import load_model
from fewstep.bench.compare import CONVERGED_NFE, Counted, compare, converged

SOLVERS = {"evodiff": fs.EVODiff(), "heun": fs.Heun(), "unipc": fs.UniPC(order=3)}
BUDGETS = (1, 4, 7)


@pytest.fixture(scope="module")
def problem():
    return gaussian()


@pytest.fixture(scope="module")
def noise(problem):
    return fs.unit_noise(range(3), problem.shape, dtype=torch.float64)


@pytest.fixture(scope="module")
def denoiser(problem):
    return problem.denoiser(fs.EDM())


def test_one_result_for_each_solver_and_budget_solver_by_solver(denoiser, noise):
    results = list(compare(denoiser, noise, fs.EDM(), SOLVERS, BUDGETS, noise))
    assert [(r.solver, r.nfe) for r in results] == [(name, nfe) for name in SOLVERS for nfe in BUDGETS]


def test_the_calls_made_are_the_budget_and_are_counted(denoiser, noise):
    """By a count of our own, beside the one in the result."""
    calls = 0

    def counting(x, t):
        nonlocal calls
        calls += 1
        return denoiser(x, t)

    for result in compare(counting, noise, fs.EDM(), SOLVERS, BUDGETS, noise):
        assert result.calls == result.nfe == calls
        calls = 0


def test_every_run_starts_from_the_same_noise(denoiser, noise):
    starts = []

    def watching(x, t):
        if t == fs.EDM().sigma_max:
            starts.append(x / t)
        return denoiser(x, t)

    list(compare(watching, noise, fs.EDM(), SOLVERS, BUDGETS, noise))
    assert len(starts) == len(SOLVERS) * len(BUDGETS)
    for start in starts:
        torch.testing.assert_close(start, noise, rtol=2**-52, atol=0)


@pytest.mark.parametrize("grid", [None, fs.karras])
def test_images_are_those_of_sample(denoiser, noise, grid):
    for r in compare(denoiser, noise, fs.EDM(), SOLVERS, BUDGETS, noise, grid):
        assert torch.equal(
            r.images, fs.sample(denoiser, noise, nfe=r.nfe, solver=SOLVERS[r.solver], schedule=fs.EDM(), grid=grid)
        )


def test_rmse_is_per_pixel_over_all_images(denoiser, noise):
    exact = torch.randn_like(noise)
    for r in compare(denoiser, noise, fs.EDM(), SOLVERS, BUDGETS, exact):
        difference = r.images.numpy() - exact.numpy()
        assert r.rmse == pytest.approx(np.linalg.norm(difference) / difference.size**0.5, rel=1e-12)


def test_a_solution_is_at_distance_zero_of_itself(denoiser, noise):
    exact = fs.sample(denoiser, noise, nfe=4, solver=fs.DDIM(), schedule=fs.EDM())
    (result,) = compare(denoiser, noise, fs.EDM(), {"ddim": fs.DDIM()}, [4], exact)
    assert result.rmse == 0


def test_converged_makes_its_calls_and_is_the_exact_solution(problem, denoiser, noise):
    counted = Counted(denoiser)
    nodes = fs.log_snr(fs.EDM(), 2)
    got = converged(counted, noise, fs.EDM())
    assert counted.calls == CONVERGED_NFE
    exact = problem.solution(noise * nodes[0].sigma, nodes[0], nodes[-1])
    # The last step, from sigma_min = 0.002 to 0, moves a pixel by at most 0.002^2 / 0.03 to second order.
    assert (got - exact).abs().max() < 2e-4


def test_the_packaged_model_is_converged_at_the_calls_that_we_take_for_it():
    """Beyond 128 calls a pixel moves by less than 0.002, the least difference that is printed being 0.0001."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = load_model()
    noise = fs.unit_noise(range(2), model.shape)
    denoiser = model.conditioned([0, 1])
    taken, limit = (converged(denoiser, noise, model.schedule, nfe) for nfe in (CONVERGED_NFE, 2 * CONVERGED_NFE))
    torch.set_num_threads(threads)
    assert (taken - limit).square().mean().sqrt() < 0.002
