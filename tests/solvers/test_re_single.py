import math
import re

import numpy as np
import pytest
import torch

import fewstep as fs
from benchmarks.orders import convergence
from benchmarks.problems import gaussian
from fewstep.sampling import plan
from golden import TIMES_TOL, arrays, entries, noise, problem

SCHEDULES = {"edm": fs.EDM(0.02, 20.0), "vp": fs.VPLinear(), "flow": fs.Flow()}
FIELDS = pytest.mark.parametrize("field", ["noise", "data"])
GAMMAS = [0.0, 0.3, 1.0, "low", "high"]
RATIOS = [1.0, 1.7, 2.0, 5.0, "low", "high"]
DPM_SOLVER_2 = [
    ("dpm_solver", "vp_linear__dpmsolver__singlestep__order2__logSNR__steps6__dpmsolver"),
    ("dpm_solver", "vp_linear__dpmsolver__singlestep__order2__logSNR__steps10__dpmsolver"),
    ("dpm_solver", "vp_linear__dpmsolver__singlestep__order2__logSNR__steps10__taylor"),
    ("dpm_solver_edm", "edm__dpmsolver__singlestep__order2__logSNR__nfe8__dtz0"),
    ("dpm_solver_edm", "edm__dpmsolver__singlestep__order2__logSNR__nfe15__dtz0"),
]


def kappa_and_snr(field, node):
    return (node.alpha / node.sigma if field == "data" else node.sigma / node.alpha), (node.alpha / node.sigma) ** 2


def printed_interval_of_ratio(snr_s, snr_i):
    return 1, 4 * snr_i / (snr_s + snr_i)


def printed_interval_of_gamma(snr_s, snr_i):
    return snr_s / (snr_s + snr_i), max(2 * snr_s, snr_i) / (snr_s + snr_i)


@pytest.mark.parametrize(("file", "key"), DPM_SOLVER_2)
def test_dpm_solver_2_is_the_iteration_with_a_gamma_of_its_own(file, key):
    """Proposition 3.3. On a grid uniform in log-SNR its numbers are the same in every step."""
    schedule = fs.EDM() if file == "dpm_solver_edm" else fs.VPLinear()
    nfe = entries(file)[key]["nfe"]
    nodes = fs.log_snr(schedule, (nfe + 1) // 2, to_zero=False)
    h = nodes[1].lam - nodes[0].lam
    ratio = 1 + math.exp(-h / 2)  # of the whole step and the one to the midpoint in log-SNR
    weight = 1.0
    if key.endswith("taylor"):
        weight = 2 * (1 / h - 1 / math.expm1(h))
    solver = fs.RESingle(gamma=weight - ratio / 2, ratio=ratio)
    x = noise() * nodes[0].sigma if file == "dpm_solver_edm" else noise()
    got = fs.integrate(problem().denoiser(schedule), x, nodes, solver=solver, schedule=schedule, nfe=nfe)
    np.testing.assert_allclose(got.numpy(), arrays(file)[key], rtol=0, atol=TIMES_TOL * entries(file)[key]["tol"])


@pytest.mark.parametrize("nfe", [2, 7, 8, 15])
@pytest.mark.parametrize("to_zero", [True, False])
def test_fd_in_noise_with_the_second_call_at_the_end_is_heun(nfe, to_zero):
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)

    def run(solver, schedule):
        def denoiser(x, t):
            return x / (1 + x * x + schedule.node(t).nsr ** 2) + 0.25

        return fs.sample(denoiser, x, nfe=nfe, solver=solver, schedule=schedule, grid=fs.karras(to_zero=to_zero))

    for schedule in (fs.EDM(), fs.VPLinear()):
        fd = run(fs.RESingle(gamma=0.0, ratio="low"), schedule)
        torch.testing.assert_close(fd, run(fs.Heun(), schedule), rtol=1e-12, atol=1e-12)


@FIELDS
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_a_run_is_the_printed_iteration(field, gamma, ratio, schedule):
    """Eq. (4.1), and with gamma = 0 eq. (3.7), in f(x), kappa and F, on a scalar problem."""

    def denoised(x, node):
        return np.tanh(x / node.alpha) / (1 + node.nsr)

    def d(x, node):
        m = denoised(x, node)
        return m if field == "data" else (x - node.alpha * m) / node.sigma

    def scale(node):
        return node.sigma if field == "data" else node.alpha

    nodes = fs.log_snr(schedule, 5, to_zero=False)
    solver = fs.RESingle(field, gamma, ratio)
    stages = solver.plan(schedule, nodes)
    start = np.array([[-1.5, 0.2, 0.9]]) * nodes[0].sigma
    x = start
    for s, t, inner in zip(nodes, nodes[1:], (stage.node for stage in stages[1::2]), strict=False):
        (kappa_s, snr_s), (kappa_i, snr_i), (kappa_t, _) = (kappa_and_snr(field, n) for n in (s, inner, t))
        h, h_hat = kappa_t - kappa_s, kappa_i - kappa_s
        g = gamma
        if isinstance(gamma, str):
            g = printed_interval_of_gamma(snr_s, snr_i)[gamma == "high"]
        if isinstance(ratio, float):
            assert h / h_hat == pytest.approx(ratio, rel=1e-9)
        d_s = d(x, s)
        d_i = d(scale(inner) * (x / scale(s) + h_hat * d_s), inner)
        x = scale(t) * (x / scale(s) + h * (g * d_i + (1 - g) * d_s) + h**2 / 2 * (d_i - d_s) / h_hat)

    def denoiser(x, t):
        return torch.tensor(denoised(x.numpy(), schedule.node(t)))

    got = fs.integrate(denoiser, torch.tensor(start), nodes, solver=solver, schedule=schedule)
    # Times of s_i come out of the schedule's inverse, whose rounding is amplified at alpha near 0.
    np.testing.assert_allclose(got.numpy(), x, rtol=1e-9, atol=1e-9)


@FIELDS
@pytest.mark.parametrize("end", ["low", "high"])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
@pytest.mark.parametrize("steps", [1, 3, 10, 100])
def test_recommended_numbers_are_ends_of_the_printed_intervals(field, end, schedule, steps):
    nodes = fs.log_snr(schedule, steps, to_zero=False)
    stages = fs.RESingle(field, gamma=end, ratio=end).plan(schedule, nodes)
    for s, t, call, answer in zip(nodes, nodes[1:], stages[::2], stages[1::2], strict=False):
        (kappa_s, snr_s), (kappa_i, snr_i), (kappa_t, _) = (kappa_and_snr(field, n) for n in (s, answer.node, t))
        assert call.node == s
        ratio = (kappa_t - kappa_s) / (kappa_i - kappa_s)
        newer, older = answer.move.weights
        gamma = newer / (newer + older) - ratio / 2
        assert ratio == pytest.approx(printed_interval_of_ratio(snr_s, snr_i)[end == "high"], rel=1e-8)
        assert ratio * (1 + 1e-12) >= 1
        assert gamma == pytest.approx(printed_interval_of_gamma(snr_s, snr_i)[end == "high"], rel=1e-6)


@FIELDS
def test_recommended_numbers_of_short_steps_are_the_midpoint_and_one_half(field):
    nodes = fs.log_snr(fs.EDM(), 20_000, to_zero=False)[:2]
    _, answer = fs.RESingle(field).plan(fs.EDM(), nodes)
    assert answer.node.sigma == pytest.approx((nodes[0].sigma + nodes[1].sigma) / 2, rel=1e-6)
    newer, older = answer.move.weights
    assert newer / (newer + older) == pytest.approx(1 / 2 + 1, abs=1e-3)


@FIELDS
def test_fd_is_of_second_order_wherever_the_second_call_is_and_re_is_not(field):
    def falls(solver):
        errors = convergence(solver, fs.EDM(0.05, 5.0), gaussian(), steps=(80, 160))
        return errors[0] / errors[1]

    for ratio in (1.0, 3.0):
        assert falls(fs.RESingle(field, gamma=0.0, ratio=ratio)) > 3.5
    for gamma in (0.5, "low", "high"):
        assert 1.7 < falls(fs.RESingle(field, gamma=gamma, ratio=2.0)) < 2.3


def test_the_84_calls_of_the_paper_are_42_steps_in_noise():
    betas = np.linspace(1e-4, 0.02, 1000)
    nodes, stages = plan(fs.Discrete(np.cumprod(1 - betas).tolist()), fs.RESingle(), nfe=84)
    assert (len(nodes) - 1, len(stages)) == (42, 84)
    assert {stage.field for stage in stages} == {"noise"}


def test_an_odd_budget_takes_the_last_noisy_step_at_first_order():
    for to_zero, pattern in ((False, [True, False] * 3 + [False]), (True, [True, False] * 2 + [False] * 2)):
        nodes = fs.log_snr(fs.EDM(), 4, to_zero=to_zero)
        full = fs.RESingle().plan(fs.EDM(), nodes)
        assert [stage.hold for stage in fs.RESingle().plan(fs.EDM(), nodes, len(full) - 1)] == pattern
        for nfe in (len(full) - 2, len(full) + 1):
            with pytest.raises(ValueError, match=f"4 steps costs RESingle {len(full)} calls, .* got nfe={nfe}"):
                fs.RESingle().plan(fs.EDM(), nodes, nfe)


def test_a_flow_needs_the_data_field():
    nodes = fs.time_uniform(fs.Flow(), 4)
    with pytest.raises(ValueError, match="no step away from alpha = 0"):
        fs.RESingle().plan(fs.Flow(), nodes)
    # The steps from pure noise and to clean data are of first order.
    assert [stage.hold for stage in fs.RESingle("data").plan(fs.Flow(), nodes)] == [False, *[True, False] * 2, False]


def test_rising_noise_with_an_empty_interval_puts_the_second_call_at_the_end():
    nodes = fs.log_snr(fs.EDM(), 4, to_zero=False)[::-1]
    stages = fs.RESingle().plan(fs.EDM(), nodes)
    assert [stage.node for stage in stages[1::2]] == list(nodes[1:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"field": "velocity"}, "field must be one of 'noise', 'data'; got 'velocity'"),
        ({"gamma": "middle"}, "gamma must be one of 'low', 'high'; got 'middle'"),
        ({"gamma": 1.5}, "gamma must be 'low', 'high' or a number in [0, 1]; got 1.5"),
        ({"gamma": math.nan}, "gamma must be 'low', 'high' or a number in [0, 1]; got nan"),
        ({"ratio": "middle"}, "ratio must be one of 'low', 'high'; got 'middle'"),
        ({"ratio": 0.5}, "ratio must be 'low', 'high' or a finite number of at least 1; got 0.5"),
        ({"ratio": math.inf}, "ratio must be 'low', 'high' or a finite number of at least 1; got inf"),
    ],
)
def test_bad_options_say_what_is_allowed(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        fs.RESingle(**options)
