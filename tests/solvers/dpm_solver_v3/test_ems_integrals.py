import numpy as np
import pytest

import fewstep as fs
from fewstep.solvers.dpm_solver_v3.ems_integrals import CHUNK, RULES, integrals
from golden import arrays


@pytest.mark.parametrize("degenerated", ["", "__degenerated"])
def test_the_trapezoidal_rule_equals_the_authors_tables(degenerated):
    """The goldens hold every tenth row of the integrals from point 0 of the table of 121."""
    z = arrays("dpm_solver_v3")
    lam = z["lambda_grid__edm"]
    columns = [z[f"stat_edm_{column}"] for column in "lsb"]
    if degenerated:
        columns = [np.full_like(column, value) for column, value in zip(columns, (1, 0, 0), strict=True)]
    made = integrals(fs.EMS(lam, *columns), lam[[0, 110, 120]].tolist(), 1, "trapezoid")
    got = {"L": made.dl, "S": made.ds, "I": made.moments[:, 0], "B": made.beta, "C": made.drift}
    for name in "LSIBC":
        want = z[f"integral_{name}__edm{degenerated}"].reshape(13, -1)[11]
        # 110 additions in float64, in another order.
        np.testing.assert_allclose(got[name][0], want, rtol=0, atol=1e-13 * np.abs(want).max(), err_msg=name)


@pytest.mark.parametrize("way", ["rising", "falling"])
def test_gauss_integrals_are_exact_for_statistics_linear_in_lam(way):
    """l, s, b linear between two points: L + S is quadratic, and mpmath's quadrature the reference."""
    mpmath = pytest.importorskip("mpmath")
    ends = {"l": (0.9, 0.2), "s": (-0.4, 0.3), "b": (0.5, -0.7)}
    statistics = fs.EMS([-2.0, 3.0], *(list(pair) for pair in ends.values()))
    lams = (-1.5, 1.0) if way == "rising" else (1.0, -1.5)
    made = integrals(statistics, lams, 3, "gauss")

    def column(name, lam):
        start, end = ends[name]
        return start + (lam + 2) / 5 * (end - start)

    def integral(name, lam):  # of a linear function, from lams[0]
        return (lam - lams[0]) * (column(name, lams[0]) + column(name, lam)) / 2

    def pull(lam):
        return mpmath.quad(lambda u: mpmath.exp(-integral("s", u)) * column("b", u), [lams[0], lam])

    def growth(lam):
        return mpmath.exp(integral("l", lam) + integral("s", lam))

    close = {"rel": 1e-13, "abs": 1e-14}
    assert made.dl[0, 0] == pytest.approx(integral("l", lams[1]), **close)
    assert made.ds[0, 0] == pytest.approx(integral("s", lams[1]), **close)
    assert made.beta[0, 0] == pytest.approx(float(pull(lams[1])), **close)
    for k in range(3):
        want = mpmath.quad(lambda u, k=k: growth(u) * (u - lams[0]) ** k / mpmath.factorial(k), lams)
        assert made.moments[0, k, 0] == pytest.approx(float(want), **close)
    want = mpmath.quad(lambda u: growth(u) * pull(u), lams)
    assert made.drift[0, 0] == pytest.approx(float(want), **close)


def test_elements_taken_apart_are_those_taken_together(monkeypatch):
    rng = np.random.default_rng(0)
    statistics = fs.EMS(np.linspace(-3, 3, 7), *rng.normal(size=(3, 7, 5)))
    whole = integrals(statistics, [-2.5, 0.1, 2.9], 3, "gauss")
    assert CHUNK > 1000  # more than these five elements fill
    monkeypatch.setattr("fewstep.solvers.dpm_solver_v3.ems_integrals.CHUNK", 1)
    for one, other in zip(whole, integrals(statistics, [-2.5, 0.1, 2.9], 3, "gauss"), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-14)


def test_a_step_over_a_point_of_the_table_is_the_two_steps_up_to_it():
    rng = np.random.default_rng(1)
    statistics = fs.EMS(np.linspace(-3, 3, 4), *rng.normal(size=(3, 4, 2)))
    one, two = (integrals(statistics, lams, 1, "gauss") for lams in ([-2.0, 2.0], [-2.0, 0.5, 2.0]))
    growth = np.exp(two.dl[0] + two.ds[0])
    np.testing.assert_allclose(one.dl[0], two.dl.sum(0), rtol=1e-13)
    np.testing.assert_allclose(one.beta[0], two.beta[0] + np.exp(-two.ds[0]) * two.beta[1], rtol=1e-12)
    np.testing.assert_allclose(one.moments[0, 0], two.moments[0, 0] + growth * two.moments[1, 0], rtol=1e-12)
    drift = two.drift[0] + growth * (two.beta[0] * two.moments[1, 0] + np.exp(-two.ds[0]) * two.drift[1])
    np.testing.assert_allclose(one.drift[0], drift, rtol=1e-11)


@pytest.mark.parametrize(("name", "order"), [("gauss", 8), ("trapezoid", 2)])
def test_rules_integrate_polynomials_below_their_order(name, order):
    rule = RULES[name]
    for k in range(order):
        assert rule.weights @ rule.points**k == pytest.approx(1 / (k + 1), rel=1e-14)
    assert abs(rule.weights @ rule.points**order - 1 / (order + 1)) > 1e-6
    for k in range(len(rule.points)):
        np.testing.assert_allclose(rule.matrix @ rule.points**k, rule.points ** (k + 1) / (k + 1), atol=1e-14)
