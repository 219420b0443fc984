import pytest

import fewstep as fs
from benchmarks.orders import convergence, fitted_order, reference, start
from benchmarks.problems import gaussian


def test_the_fit_finds_a_power():
    assert fitted_order([10, 20, 40], [3e-2 / 4**k for k in range(3)]) == pytest.approx(2, abs=1e-12)


def test_the_reference_for_mixtures_is_right_where_the_solution_is_known(monkeypatch):
    """UniPC-3 in 10,000 steps against the closed form: two components of which one has all the weight."""
    p = gaussian()
    nodes = fs.log_snr(fs.EDM(), 2, to_zero=False)
    x = start(p, nodes[0])
    exact = p.solution(x, nodes[0], nodes[-1])
    monkeypatch.setattr(type(p), "solution", None)
    twin = type(p)(*(v.repeat_interleave(2, 0) for v in (p.weights / 2, p.means, p.variances, p.vectors)), p.shape)
    got = reference(twin, fs.EDM(), x, nodes[0], nodes[-1])
    # Order 3.9 and 1.3e-9 at 640 steps leave 3e-14; the rest is the rounding of 10,000 steps.
    assert (got - exact).square().mean().sqrt() < 1e-11


def test_errors_fall_with_steps():
    errors = convergence(fs.DDIM(), fs.VPLinear(), gaussian(), steps=(10, 20, 40))
    assert errors[0] > errors[1] > errors[2] > 0
