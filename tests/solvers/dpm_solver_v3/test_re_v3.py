import numpy as np
import pytest
import torch

import fewstep as fs
from benchmarks.problems import gaussian
from wavy import run, wavy

SCHEDULES = {"edm": fs.EDM(), "vp": fs.VPLinear(), "flow": fs.Flow()}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_zeta_1_is_dpm_solver_v3_of_order_2(name, eta):
    got = run(fs.REMultiV3(wavy(), eta=eta, zeta=1.0), SCHEDULES[name])
    want = run(fs.DPMSolverV3(wavy(), 2, corrector=bool(eta), final_order=2), SCHEDULES[name])
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", SCHEDULES)
def test_zeta_0_is_dpm_solver_v3_of_order_1(name):
    got = run(fs.REMultiV3(wavy(), zeta=0.0), SCHEDULES[name])
    want = run(fs.DPMSolverV3(wavy(), 1), SCHEDULES[name])
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


def by_hand(problem, nodes, x, eta, zeta):
    """The iteration in data prediction, from its definition: l = 1, s = b = 0, where g = -D.

    x_t = (sigma_t / sigma_s) x + alpha_t (1 - e^-h) m_0 + alpha_t (h - 1 + e^-h) m', m' the slope in lam.
    """
    past, weights = [], {"prior": lambda a, b: a**2 / (a**2 + b**2), "minimal": lambda a, b: b**2 / (a**2 + b**2)}
    share = weights[zeta]
    pending = None
    for i in range(len(nodes) - 1):
        s, t = nodes[i : i + 2]
        m0 = problem.denoised(x, s)
        if pending is not None:
            start, p, slope, m1 = pending
            h = s.lam - p.lam
            coming = share(s.sigma, p.sigma) * (m0 - m1) / h
            x = start(eta * coming + (1 - eta) * slope)
        h = t.lam - s.lam

        def step(slope, x=x, s=s, t=t, m0=m0, h=h):
            first = t.sigma / s.sigma * x - t.alpha * np.expm1(-h) * m0
            return first + t.alpha * (h - 1 + np.exp(-h)) * slope

        slope = torch.zeros_like(x)
        if past:
            p, m1 = past[-1]
            slope = share(s.sigma, p.sigma) * (m0 - m1) / (s.lam - p.lam)
        moves_on = i + 2 < len(nodes) and nodes[i + 2].sigma > 0
        pending = (step, s, slope, m0) if eta and past and moves_on else None
        past.append((s, m0))
        x = step(slope)
    return x


@pytest.mark.parametrize("zeta", ["prior", "minimal"])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", SCHEDULES)
def test_equals_the_iteration_by_hand(name, eta, zeta):
    schedule, problem = SCHEDULES[name], gaussian()
    nodes = fs.log_snr(schedule, 6, to_zero=False)
    x = torch.randn(2, *problem.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    want = by_hand(problem, nodes, x * nodes[0].sigma, eta, zeta)
    got = run(fs.REMultiV3(fs.EMS.constant(), eta=eta, zeta=zeta), schedule, 6)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": 1.5}, r"eta must be a number in \[0, 1\]; got 1.5"),
        ({"zeta": "least"}, "zeta must be one of 'prior', 'minimal'; got 'least'"),
        ({"zeta": -1.0}, "got -1.0"),
        ({"quadrature": "simpson"}, "quadrature must be one of"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        fs.REMultiV3(fs.EMS.constant(), **options)


def test_other_statistics_are_refused():
    with pytest.raises(TypeError, match=r"statistics must be EMS, .* got dict"):
        fs.REMultiV3({})
