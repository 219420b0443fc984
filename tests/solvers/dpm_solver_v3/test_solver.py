import copy
import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch

import fewstep as fs
from benchmarks.problems import gaussian
from golden import arrays, assert_matches, entries
from wavy import run, wavy

KEYS = list(entries("dpm_solver_v3"))
SCHEDULES = {"edm": fs.EDM(), "vp": fs.VPLinear(), "flow": fs.Flow()}


def published(facts):
    """The statistics of a golden, its schedule and its nodes, which lie on points of the table."""
    z, name = arrays("dpm_solver_v3"), facts["schedule"]
    short, schedule = ("edm", fs.EDM()) if name == "edm" else ("vp", fs.VPLinear())
    lam = z[f"lambda_grid__{name}"]
    columns = [z[f"stat_{short}_{column}"] for column in "lsb"]
    if facts.get("degenerated"):
        columns = [np.full_like(column, value) for column, value in zip(columns, (1, 0, 0), strict=True)]
    index = z[f"index__{name}__{facts.get('grid') or facts.get('skip')}__nfe{facts['nfe']}"]
    return fs.EMS(lam, *columns), schedule, fs.from_times(schedule, [schedule.time_at(lam[i]) for i in index])


# Against the authors' code


@pytest.mark.parametrize("key", KEYS)
def test_equals_the_authors_code(key):
    facts = entries("dpm_solver_v3")[key]
    statistics, schedule, nodes = published(facts)
    solver = fs.DPMSolverV3(
        statistics,
        facts["order"],
        corrector=bool(facts["use_corrector"]),
        predictor_pseudo=bool(facts["p_pseudo"]),
        corrector_pseudo=bool(facts["use_corrector"] and facts["c_pseudo"]),
        final_order=1,
        quadrature="trapezoid",
    )
    assert_matches("dpm_solver_v3", key, solver, schedule, nodes)


# Against definitions


def test_the_trapezoidal_rule_tends_to_the_exact_integrals_at_second_order():
    def difference(points):
        made = [run(fs.DPMSolverV3(wavy(points=points), quadrature=q), fs.EDM()) for q in ("gauss", "trapezoid")]
        return (made[0] - made[1]).abs().max().item()

    ratio = difference(401) / difference(801)
    assert ratio == pytest.approx(4, rel=0.15)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("order", [1, 2])
def test_with_l_1_it_is_dpm_solver_pp(name, order):
    """Without its corrector; exact integrals make the variant "taylor"."""
    got = run(fs.DPMSolverV3(fs.EMS.constant(), order, corrector=False), SCHEDULES[name])
    torch.testing.assert_close(got, run(fs.DPMSolverPP(order, "taylor"), SCHEDULES[name]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("field", ["data", "noise"])
def test_degenerate_statistics_are_the_multistep_method_in_the_denoised_or_the_noise(name, order, field):
    """Written here from its definition: a polynomial in lam through the last predictions, under the exact integral.

    (1, 0, 0): x_t / sigma_t - x / sigma is the integral of e^lam D;
    (0, -1, 0): x_t / alpha_t - x / alpha is the integral of e^-lam (-noise).
    """
    mpmath = pytest.importorskip("mpmath")
    schedule, problem = SCHEDULES[name], gaussian()
    statistics = fs.EMS.constant() if field == "data" else fs.EMS.constant(l=0.0, s=-1.0)
    nodes = fs.log_snr(schedule, 5, to_zero=False)
    start = torch.randn(2, *problem.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    start = x = start * nodes[0].sigma
    past = []
    for i, (s, t) in enumerate(pairwise(nodes)):
        denoised = problem.denoised(x, s)
        past.insert(0, (s.lam, denoised if field == "data" else (s.alpha * denoised - x) / s.sigma))
        past = past[: min(order, i + 1)]
        sign = 1 if field == "data" else -1
        scale_s, scale_t = (n.sigma if field == "data" else n.alpha for n in (s, t))
        x = x / scale_s
        for own, prediction in past:

            def basis(u, own=own, points=tuple(past), sign=sign):
                return mpmath.exp(sign * u) * mpmath.fprod((u - lam) / (own - lam) for lam, _ in points if lam != own)

            x = x + float(mpmath.quad(basis, [s.lam, t.lam])) * prediction
        x = x * scale_t
    solver = fs.DPMSolverV3(statistics, order, corrector=False, final_order=3)
    got = fs.integrate(problem.denoiser(schedule), start, nodes, solver=solver, schedule=schedule)
    # Long steps weigh the noisy state, of size up to 1000 in the noise field, with numbers up to 100.
    torch.testing.assert_close(got, x, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", SCHEDULES)
def test_any_statistics_lead_to_the_solution(name):
    """They change the coordinates, not the ODE: with a table that bends at 41 points the error still falls as h^2."""
    schedule, problem = SCHEDULES[name], gaussian()
    nodes = fs.log_snr(schedule, 2, to_zero=False)
    x = torch.randn(2, *problem.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    want = problem.solution(x * nodes[0].sigma, nodes[0], nodes[-1])
    errors = [(run(fs.DPMSolverV3(wavy()), schedule, steps) - want).abs().max() for steps in (100, 400)]
    assert errors[1] < errors[0] / 8
    assert errors[1] < 1e-3


def test_statistics_that_say_all_make_every_step_exact():
    """x_0 ~ N(0, v), l = 0: f = y - D = k y with y = x / alpha and k = e^-2lam / (v + e^-2lam), y' = -k y and so
    f' = (k' / k - k) f. Then s = k' / k - k makes g constant, and a first-order step of any length is exact.
    """
    v = 0.3
    lam = torch.linspace(-5, 7, 4001, dtype=torch.float64)
    k = (-2 * lam).exp() / (v + (-2 * lam).exp())
    zero = torch.zeros_like(lam)
    s = -2 * (1 - k) - k  # k' = -2 k (1 - k)
    schedule, x = fs.EDM(), torch.randn(3, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 80
    nodes = fs.log_snr(schedule, 3, to_zero=False)
    want = x * ((v + nodes[-1].sigma ** 2) / (v + 80**2)) ** 0.5
    solver = fs.DPMSolverV3(fs.EMS(lam, zero, s, zero), order=1)
    got = fs.integrate(lambda x, t: x * v / (v + t * t), x, nodes, solver=solver, schedule=schedule)
    # s bends by less than 1 over a cell of 0.003: an error of 0.003^2 / 8 in its mean, over a range of 10.6.
    torch.testing.assert_close(got, want, rtol=2e-5, atol=0)
    plain = fs.integrate(lambda x, t: x * v / (v + t * t), x, nodes, solver=fs.DDIM(), schedule=schedule)
    assert ((plain - want) / want).abs().min() > 0.1


def test_one_number_for_all_elements_equals_the_same_for_each():
    lam = torch.linspace(-8, 8, 9, dtype=torch.float64)
    shared = fs.EMS(lam, lam.sigmoid(), lam.sin() / 3, lam.cos() / 5)
    each = fs.EMS(lam, *(getattr(shared, c).reshape(-1, 1, 1, 1).expand(-1, 2, 4, 4) for c in "lsb"))
    got = [run(fs.DPMSolverV3(statistics, corrector_pseudo=True), fs.EDM()) for statistics in (shared, each)]
    # A table is looked up in another order of sums; noise of 80 rounds to 1e-14, in each of the steps.
    torch.testing.assert_close(*got, rtol=1e-12, atol=1e-12)


# The corrector


def corrected(solver, schedule=None, steps=8, **grid):
    schedule = schedule or fs.EDM()
    stages = solver.plan(schedule, fs.log_snr(schedule, steps, **grid))
    return [getattr(stage, "correct", None) is not None for stage in stages]


def test_the_corrector_costs_no_call_and_stays_out_of_the_last_step():
    solver = fs.DPMSolverV3(fs.EMS.constant())
    # The step into node 1 is of order 1, whose corrector has no point to use.
    assert corrected(solver, steps=5, to_zero=False) == [False, False, True, True, True]
    assert corrected(solver, steps=5, to_zero=True) == [False, False, True, True, False]
    assert corrected(fs.DPMSolverV3(fs.EMS.constant(), corrector_pseudo=True), steps=4, to_zero=False)[1]
    assert not any(corrected(fs.DPMSolverV3(fs.EMS.constant(), corrector=False), to_zero=False))
    assert not any(corrected(fs.DPMSolverV3(fs.EMS.constant(), order=1), to_zero=False))


def test_half_corrects_in_the_noisy_half_of_the_clock():
    schedule = fs.Discrete([0.999 * 0.99**i for i in range(1000)])
    nodes = fs.from_times(schedule, [999, 800, 600, 500, 499, 300, 100, 0])
    stages = fs.DPMSolverV3(fs.EMS.constant(), 2, corrector="half").plan(schedule, nodes)
    times = [stage.node.time for stage in stages if stage.correct is not None]
    assert times == [600, 500]  # index 499 of 1000 is t = 0.5 in the authors' clock, which they leave out


# The contract of stages, with statistics of each element


@pytest.mark.parametrize("shape", [(3, 5, 7), (5,), (2, 3, 4, 5)])
def test_a_batch_equals_its_images_bit_for_bit(shape):
    noise = torch.randn(7, *shape, generator=torch.Generator().manual_seed(1))

    def denoiser(x, t):
        return x / (1 + x * x + t * t) + 0.25

    solver = fs.DPMSolverV3(wavy(shape), corrector_pseudo=True)
    whole = fs.sample(denoiser, noise, nfe=6, solver=solver, schedule=fs.EDM())
    assert torch.equal(
        whole, torch.cat([fs.sample(denoiser, image[None], nfe=6, solver=solver, schedule=fs.EDM()) for image in noise])
    )


def test_stages_pickle_and_keep_the_working_precision():
    stages = fs.DPMSolverV3(wavy(), corrector_pseudo=True).plan(fs.EDM(), fs.log_snr(fs.EDM(), 8))
    for dtype in (torch.float32, torch.float64):
        x = again = torch.randn(2, 2, 4, 4, dtype=dtype) * 80
        state = state_again = None
        for stage in stages:
            denoised = x / (1 + stage.node.time**2)
            again, state_again = pickle.loads(pickle.dumps(stage))(copy.deepcopy(state_again), again, denoised)
            x, state = stage(state, x, denoised)
            assert torch.equal(x, again)
            assert {each.dtype for each in (x, *state.past)} == {dtype}


def test_float32_loses_no_more_than_its_roundings():
    """The predictions are perturbed by 2^-24, and f = (1 - l) y - D adds numbers of the size of the noisy state."""
    noise = torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(2))
    problem, solver = gaussian(), fs.DPMSolverV3(wavy())
    exact = fs.sample(problem.denoiser(fs.EDM()), noise.double(), nfe=8, solver=solver)
    got = fs.sample(problem.denoiser(fs.EDM()), noise, nfe=8, solver=solver)
    assert (got - exact).abs().max() < 8 * 20 * 80 * 2**-24


# Users' mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 4}, "order must be one of 1, 2, 3; got 4"),
        ({"corrector": "quarter"}, "corrector must be one of True, False, 'half'; got 'quarter'"),
        ({"corrector": False, "corrector_pseudo": True}, "corrector_pseudo=True needs a corrector"),
        ({"final_order": 0}, "final_order must be one of"),
        ({"quadrature": "simpson"}, "quadrature must be one of 'gauss', 'trapezoid'; got 'simpson'"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        fs.DPMSolverV3(fs.EMS.constant(), **options)


def test_other_statistics_are_refused():
    with pytest.raises(TypeError, match=r"statistics must be EMS, .* got Gamma"):
        fs.DPMSolverV3(fs.Gamma.gaussian())


def test_a_grid_beyond_the_statistics_is_refused():
    statistics = fs.EMS([-4.0, 4.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0])
    with pytest.raises(
        ValueError, match=r"reach from lam -4 to 4, the grid to -4.38\d+ \(time 80, sigma 80\): estimate"
    ):
        fs.DPMSolverV3(statistics).plan(fs.EDM(), fs.log_snr(fs.EDM(), 5))


@pytest.mark.parametrize("shape", [(1, 4, 4), (8, 8), (3, 8, 8), (4,)])
def test_images_of_another_shape_are_refused(shape):
    one = torch.ones(2, 3, 4, 4)
    solver = fs.DPMSolverV3(fs.EMS([-10.0, 10.0], one, 0 * one, 0 * one))
    with pytest.raises(ValueError, match=r"statistics are of images of shape \(3, 4, 4\); got x of shape"):
        fs.sample(lambda x, t: x * 0, torch.randn(2, *shape), nfe=4, solver=solver, schedule=fs.EDM())


def test_a_stage_entered_without_its_history_says_so():
    stages = fs.DPMSolverV3(fs.EMS.constant()).plan(fs.EDM(), fs.log_snr(fs.EDM(), 5))
    with pytest.raises(ValueError, match="plan again from the node you enter at"):
        stages[3](None, torch.ones(1, 2), torch.ones(1, 2))


def test_statistics_that_overflow_are_refused():
    with pytest.raises(
        ValueError, match="too large to integrate, l or s reaching 500: estimate them from more samples"
    ):
        fs.DPMSolverV3(fs.EMS.constant(s=500.0)).plan(fs.EDM(), fs.log_snr(fs.EDM(), 3))
