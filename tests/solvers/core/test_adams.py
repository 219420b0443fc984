import math

import numpy as np
import pytest

import fewstep as fs
from fewstep.solvers.core.adams import CONSTANT_STEP, adams_orders, lagrange, matching, variable_step


def edm(*sigmas):
    return fs.from_times(fs.EDM(), sigmas)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_on_equal_steps_the_weights_are_the_constant_ones(order):
    nodes = edm(9, 8, 7, 6, 5)[4 - order :]
    assert variable_step("noise", nodes) == pytest.approx(CONSTANT_STEP[order], rel=1e-14)


@pytest.mark.parametrize("sigmas", [(80, 24, 5.8, 0.97, 0.085), (0.1, 0.11, 0.3, 0.4, 2.0)])
@pytest.mark.parametrize("field", ["noise", "velocity"])
def test_polynomials_below_the_order_are_integrated_exactly(field, sigmas):
    nodes = edm(*sigmas)
    level = [s if field == "noise" else s / (1 + s) for s in sigmas]
    weights = variable_step(field, nodes)
    for degree in range(4):
        mean = (level[4] ** (degree + 1) - level[3] ** (degree + 1)) / (degree + 1) / (level[4] - level[3])
        terms = np.multiply(weights, np.array(level[3::-1]) ** degree)
        assert terms.sum() == pytest.approx(mean, abs=1e-14 * abs(terms).max())


def test_lagrange_polynomials_are_one_at_their_point_and_zero_at_the_others():
    points = (0.3, -1.0, 2.5, 4.0)
    values = [[sum(c * x**j for j, c in enumerate(row)) for x in points] for row in lagrange(points)]
    np.testing.assert_allclose(values, np.eye(4), atol=1e-14)


def test_matching_has_the_moments():
    points, moments = (0.3, -1.0, 2.5), (1.0, -0.4, 0.7)
    weights = matching(points, moments)
    assert [np.dot(weights, np.power(points, j)) for j in range(3)] == pytest.approx(moments, rel=1e-14)


def test_orders_count_a_prediction_at_alpha_zero():
    """It starts a flow's history in the velocity; the steps from pure noise and to clean data are of order 1."""
    flow = fs.time_uniform(fs.Flow(), 7)
    assert math.isinf(flow[0].lam)
    assert math.isinf(flow[-1].lam)
    assert adams_orders(flow, 4, 4) == [1, 2, 3, 4, 4, 4, 1]
    assert adams_orders(flow, 4, 1) == [1, 2, 3, 3, 2, 1, 1]
    assert adams_orders(flow[::-1][1:], 4, 4) == [1, 2, 3, 4, 4, 1]
