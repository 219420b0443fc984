"""The weights of exponential integrators against the integrals that define them, and the remainders in them."""

import math

import mpmath
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fewstep as fs
from fewstep.solvers.core.exponential import PUBLISHED_BEND, combine, multistep_row, psi, single_step

VP = fs.VPLinear()
LENGTHS = (-3.0, -0.2, 0.3, 2.5)
# Points of earlier steps (multistep) and inside the step (single step).
POINTS = [(-1.0,), (-0.4, -1.7), (0.5,), (1 / 3, 2 / 3), (0.2, 0.9)]


def integral(z, power):
    """-z times the integral of e^(z (1 - u)) u^power over the step, of unit length."""
    return float(mpmath.quad(lambda u: -z * mpmath.exp(z * (1 - u)) * u**power, [0, 1]))


@given(k=st.integers(1, 5), z=st.floats(-30, 30))
def test_psi_equals_its_series(k, z):
    with mpmath.workdps(60):
        exact = mpmath.nsum(lambda j: mpmath.mpf(z) ** int(j) / mpmath.factorial(int(j) + k), [1, mpmath.inf])
    # Beyond |z| = 1 the recursion loses a digit or so per division.
    assert psi(k, z) == pytest.approx(float(exact), rel=1e-12, abs=1e-300)


def test_psi_of_a_vanishing_step():
    for k in range(1, 5):
        assert psi(k, 0.0) == 0.0
        assert psi(k, 1e-9) == pytest.approx(1e-9 / math.factorial(k + 1), rel=1e-8)


@pytest.mark.parametrize("z", LENGTHS)
@pytest.mark.parametrize("r", POINTS)
def test_as_many_powers_are_integrated_exactly_as_there_are_predictions(z, r):
    row = combine(0.7, 1.0, z, r, "taylor")
    assert row.scale == 0.7
    for power in range(len(r) + 1):
        got = sum(weight * point**power for weight, point in zip(row.weights, (0.0, *r), strict=True))
        assert got == pytest.approx(integral(z, power), rel=1e-11)


@pytest.mark.parametrize("z", LENGTHS)
@pytest.mark.parametrize("r", POINTS)
def test_midpoint_and_the_published_third_order_are_exact_for_one_power_less(z, r):
    row = combine(0.7, 2.0, z, r, "midpoint", PUBLISHED_BEND)
    *exact, missed = range(len(r) + 1)
    moments = [
        sum(weight * point**power for weight, point in zip(row.weights, (0.0, *r), strict=True))
        for power in (*exact, missed)
    ]
    assert moments[:-1] == pytest.approx([2 * integral(z, power) for power in exact], rel=1e-11)
    # Half of the integral of 1 in place of that of u; half of that of u^2.
    assert moments[-1] == pytest.approx(integral(z, missed - 1 if missed == 1 else missed), rel=1e-11)


def test_the_published_third_order_is_of_second_order_for_that_reason():
    """Four times as many steps: an error 4^2 or so less with half of E_2, 4^3 with all of it."""

    def error(steps, bend):
        total, h = 0.0, 4 / steps
        for i in range(steps):
            lam = -2 + i * h
            weights = combine(1.0, 1.0, -h, (-1.0, -2.0), "taylor", bend).weights
            past = [float(mpmath.sin(lam - k * h)) for k in range(3)]
            total += float(mpmath.exp(lam + h)) * sum(w * m for w, m in zip(weights, past, strict=True))
        return abs(total - float(mpmath.quad(lambda v: mpmath.sin(v) * mpmath.exp(v), [-2, 2])))

    assert error(200, 1.0) / error(800, 1.0) == pytest.approx(64, rel=0.1)
    assert error(200, PUBLISHED_BEND) / error(800, PUBLISHED_BEND) == pytest.approx(16, rel=0.2)


@pytest.mark.parametrize("field", ["data", "noise"])
def test_a_multistep_row_takes_its_numbers_from_the_nodes(field):
    nodes = [VP.node(time) for time in (0.9, 0.6, 0.45, 0.2)]
    h = nodes[3].lam - nodes[2].lam
    r = [(nodes[k].lam - nodes[2].lam) / h for k in (1, 0)]
    s, t = nodes[2:]
    parts = (t.sigma / s.sigma, t.alpha, -h) if field == "data" else (t.alpha / s.alpha, t.sigma, h)
    assert multistep_row(field, nodes, 3, "taylor") == combine(*parts, r, "taylor", PUBLISHED_BEND)
    assert multistep_row(field, nodes, 2, "midpoint") == combine(*parts, r[:1], "midpoint")


@pytest.mark.parametrize("variant", ["midpoint", "taylor"])
@pytest.mark.parametrize("field", ["data", "noise"])
def test_a_single_step_holds_its_anchor_until_its_last_call(field, variant):
    points = [VP.node(time) for time in (0.9, 0.7, 0.6, 0.45)]
    stages = single_step(field, points, variant)
    assert [stage.node for stage in stages] == points[:-1]
    assert [stage.hold for stage in stages] == [True, True, False]
    assert [len(stage.keep) for stage in stages] == [1, 2, 0]
    assert [len(stage.move.weights) for stage in stages] == [1, 2, 3]
    assert (stages[2].move.weights[1] == 0) == (variant == "midpoint")
