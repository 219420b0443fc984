import math
import re

import numpy as np
import pytest
import torch

import fewstep as fs
from benchmarks.orders import convergence
from benchmarks.problems import gaussian

SCHEDULES = {"edm": fs.EDM(0.02, 20.0), "vp": fs.VPLinear(), "flow": fs.Flow()}
EVERY_SCHEDULE = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
LENGTHS = pytest.mark.parametrize("length", ["kappa", "lam"])


def kappa(node):
    return node.alpha / node.sigma


def rational(schedule):
    def denoiser(x, t):
        node = schedule.node(t)
        return x / (1 + x * x + node.sigma**2) + 0.25 * node.alpha

    return denoiser


# The iterations as they are printed, each on its own: f(x_t) from f(x_s), the predictions and the weights.


def fd(f, h, h_prev, m0, m1):
    """(4.4)"""
    return f + h * m0 + h**2 / 2 * (m0 - m1) / h_prev


def explicit(f, h, h_prev, m0, m1, sigma_s, sigma_p):
    """(4.7), u = l, with Proposition 4.2."""
    zeta = sigma_s**2 / (sigma_s**2 + sigma_p**2)
    return f + h * m0 + h**2 / 2 * zeta * (m0 - m1) / h_prev


def implicit(f, h, m_t, m0, sigma_t, sigma_s):
    """(4.7), u = s, with Proposition 4.2."""
    zeta = sigma_t**2 / (sigma_s**2 + sigma_t**2)
    return f + h * m0 + h**2 / 2 * zeta * (m_t - m0) / h


def balanced(f, h, h_prev, eta, m_t, m0, m1, zeta_s, zeta_l):
    """(4.8)"""
    return f + h * m0 + h**2 / 2 * (eta * zeta_s * (m_t - m0) / h + (1 - eta) * zeta_l * (m0 - m1) / h_prev)


def by_hand(name, schedule, nodes, x, length):
    """A run of one call a step: DDIM, then predict, call, correct; the last step is only predicted."""
    model = rational(schedule)
    s, t = nodes[:2]
    m1 = model(x, s.time)
    x = t.sigma * (x / s.sigma + (kappa(t) - kappa(s)) * m1)
    m0 = model(x, t.time)
    for p, s, t in zip(nodes, nodes[1:], nodes[2:], strict=False):
        f, h = x / s.sigma, kappa(t) - kappa(s)
        h_prev = kappa(s) - kappa(p) if length == "kappa" else h * (s.lam - p.lam) / (t.lam - s.lam)
        prior_l = s.sigma**2 / (s.sigma**2 + p.sigma**2)
        prior_s = t.sigma**2 / (s.sigma**2 + t.sigma**2)
        predicted = explicit(f, h, h_prev, m0, m1, s.sigma, p.sigma)
        if name in ("fd", "balanced with zeta 1"):
            predicted = fd(f, h, h_prev, m0, m1)
        elif name == "minimal":
            predicted = f + h * m0 + h**2 / 2 * (1 - prior_l) * (m0 - m1) / h_prev
        elif name == "zeta 0.3":
            predicted = f + 0.3 * (fd(f, h, h_prev, m0, m1) - f) + 0.7 * h * m0
        x = t.sigma * predicted
        if t is nodes[-1]:
            break
        m_t = model(x, t.time)
        if name == "implicit":
            x = t.sigma * implicit(f, h, m_t, m0, t.sigma, s.sigma)
        elif name == "balanced":
            x = t.sigma * balanced(f, h, h_prev, 0.4, m_t, m0, m1, prior_s, prior_l)
        elif name == "balanced with zeta 1":
            x = t.sigma * balanced(f, h, h_prev, 0.4, m_t, m0, m1, 1, 1)
        m1, m0 = m0, m_t
    return x


PRINTED = {
    "fd": {"zeta": 1.0},
    "explicit": {},
    "implicit": {"eta": 1.0},
    "balanced": {"eta": 0.4},
    "balanced with zeta 1": {"eta": 0.4, "zeta": 1.0},
    "minimal": {"zeta": "minimal"},
    "zeta 0.3": {"zeta": 0.3},
}


@pytest.mark.parametrize("name", PRINTED)
@EVERY_SCHEDULE
@LENGTHS
def test_a_run_is_the_printed_iteration(name, schedule, length):
    nodes = fs.log_snr(schedule, 7, to_zero=False)
    x = torch.linspace(-1.5, 1.5, 8, dtype=torch.float64).reshape(2, 4) * nodes[0].sigma
    solver = fs.REMulti(**PRINTED[name], length=length)
    got = fs.integrate(rational(schedule), x, nodes, solver=solver, schedule=schedule)
    torch.testing.assert_close(got, by_hand(name, schedule, nodes, x, length), rtol=1e-12, atol=1e-12)


@EVERY_SCHEDULE
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_with_zeta_1_steps_are_exact_for_predictions_linear_in_kappa(schedule, eta):
    """FD is the Adams-Bashforth rule of two steps in the variable kappa, whatever the nodes."""
    nodes = fs.karras(schedule, 6, to_zero=False)
    stages = fs.REMulti(eta=eta, zeta=1.0).plan(schedule, nodes)

    # Values reach 1000, with kappa, and weights 100: roundings of 1e-11.
    constant, slope = torch.tensor([[0.3, -0.7], [1.0, 0.2]], dtype=torch.float64)

    def m(node):
        return constant + slope * kappa(node)

    def solution(node):
        k = kappa(node)
        return node.sigma * (constant * k + slope / 2 * k**2)

    for i in range(1, len(nodes) - 1):
        past = m(nodes[i]), m(nodes[i - 1])
        moved = stages[i].move.apply(solution(nodes[i]), past)
        torch.testing.assert_close(moved, solution(nodes[i + 1]), rtol=1e-12, atol=1e-11)
        if eta and i < len(nodes) - 2:
            corrected = stages[i + 1].correct.apply(solution(nodes[i]), (m(nodes[i + 1]), *past))
            torch.testing.assert_close(corrected, solution(nodes[i + 1]), rtol=1e-12, atol=1e-11)


@EVERY_SCHEDULE
@pytest.mark.parametrize("to_zero", [True, False])
def test_fd_with_steps_measured_in_log_snr_is_dpm_solver_pp_2m(schedule, to_zero):
    nodes = fs.karras(schedule, 8, to_zero=to_zero)
    mine = fs.REMulti(zeta=1.0, length="lam").plan(schedule, nodes)
    for stage, peer in zip(mine, fs.DPMSolverPP(2, final_order=2).plan(schedule, nodes), strict=True):
        assert stage.node == peer.node
        assert stage.move.scale == pytest.approx(peer.move.scale, rel=1e-13)
        assert stage.move.weights == pytest.approx(peer.move.weights, rel=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("nfe", [2, 5, 10])
def test_algorithm_1_with_both_numbers_fixed_is_the_linear_iteration(eta, nfe):
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)

    def run(solver, schedule):
        return fs.sample(rational(schedule), x, nfe=nfe, solver=solver, schedule=schedule)

    for schedule in SCHEDULES.values():
        linear = run(fs.REMulti(eta=eta, zeta=1.0, length="lam"), schedule)
        torch.testing.assert_close(
            run(fs.EVODiff("paper", eta=eta, zeta=1.0), schedule), linear, rtol=1e-11, atol=1e-11
        )


@LENGTHS
def test_zeta_0_is_ddim(length):
    nodes = fs.log_snr(fs.VPLinear(), 6)
    for eta in (0.0, 0.5, 1.0):
        x = torch.randn(2, 3, dtype=torch.float64)
        run = {"nodes": nodes, "schedule": fs.VPLinear()}
        got = fs.integrate(rational(fs.VPLinear()), x, solver=fs.REMulti(eta, 0.0, length), **run)
        want = fs.integrate(rational(fs.VPLinear()), x, solver=fs.DDIM(), **run)
        torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-13)


@EVERY_SCHEDULE
def test_the_variance_is_least_at_minimal_and_the_prior_is_its_complement(schedule):
    """Of zeta newer + (1 - zeta) older, for variances in proportion to sigma^2."""
    for older, newer in zip(nodes := fs.log_snr(schedule, 6, to_zero=False), nodes[1:], strict=False):
        zetas = np.linspace(0, 1, 10_001)
        least = zetas[np.argmin(zetas**2 * newer.sigma**2 + (1 - zetas) ** 2 * older.sigma**2)]
        assert fs.REMulti(zeta="minimal").weight(newer, older) == pytest.approx(least, abs=1e-4)
        assert fs.REMulti(zeta="prior").weight(newer, older) == pytest.approx(1 - least, abs=1e-4)


def test_zeta_1_is_of_second_order_and_both_priors_are_of_first():
    def falls(solver):
        errors = convergence(solver, fs.EDM(0.05, 5.0), gaussian(), steps=(160, 320))
        return errors[0] / errors[1]

    for eta in (0.0, 0.5):
        assert falls(fs.REMulti(eta=eta, zeta=1.0)) > 3.5
    for zeta in ("prior", "minimal"):
        assert 1.7 < falls(fs.REMulti(zeta=zeta)) < 2.3


def test_nothing_is_corrected_into_a_closing_call():
    for to_zero, corrected in ((True, [0, 0, 1, 1, 1, 0]), (False, [0, 0, 1, 1, 1, 1])):
        stages = fs.REMulti(eta=1.0).plan(fs.EDM(), fs.log_snr(fs.EDM(), 6, to_zero=to_zero))
        assert [stage.correct is not None for stage in stages] == [bool(flag) for flag in corrected]
    explicit_stages = fs.REMulti().plan(fs.EDM(), fs.log_snr(fs.EDM(), 6))
    assert all(stage.correct is None and not stage.hold for stage in explicit_stages)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": 1.5}, "eta must be a number in [0, 1]; got 1.5"),
        ({"eta": math.nan}, "eta must be a number in [0, 1]; got nan"),
        ({"zeta": "least"}, "zeta must be one of 'prior', 'minimal'; got 'least'"),
        ({"zeta": -0.5}, "zeta must be 'prior', 'minimal' or a number in [0, 1]; got -0.5"),
        ({"length": "time"}, "length must be one of 'kappa', 'lam'; got 'time'"),
    ],
)
def test_bad_options_say_what_is_allowed(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        fs.REMulti(**options)
