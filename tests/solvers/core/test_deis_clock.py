import math
import pickle

import numpy as np
import pytest

import fewstep as fs
from fewstep.solvers.core.deis_clock import clock, clock_quadratic, corners
from golden import arrays

TABLE = fs.Discrete([0.98 * 0.9**i for i in range(12)])


def lam(*nodes):
    return np.array([node.lam for node in nodes])


@pytest.mark.parametrize("schedule", [fs.VPLinear(), fs.VPCosine(), TABLE, fs.Flow()], ids=repr)
def test_the_clock_is_the_schedules(schedule):
    times = np.linspace(schedule.t_min, schedule.t_max, 9)[1:-1]
    got = clock(schedule, lam(*map(schedule.node, times)))
    np.testing.assert_allclose(got, times, rtol=1e-12)


@pytest.mark.parametrize("nodes", [6, 11])
def test_edms_clock_is_diff_samplers(nodes):
    """Its time_uniform grid is uniform in it, from 1 to 1e-3."""
    sigmas = arrays("zju_diff_solvers")[f"grid__time_uniform__rho1__nodes{nodes}"]
    np.testing.assert_allclose(clock(fs.EDM(), -np.log(sigmas)), np.linspace(1, 1e-3, nodes), rtol=1e-9)


@pytest.mark.parametrize("sigma_min", [1e-4, 0.002, 0.05, 0.0936, 0.0937, 0.5, 20.0])
def test_edms_clock_never_turns_back(sigma_min):
    schedule = fs.EDM(sigma_min, 80.0)
    times = clock(schedule, -np.log(np.geomspace(80, sigma_min, 50)))
    assert times[0] == pytest.approx(1, rel=1e-12)
    assert (np.diff(times) < 0).all()
    assert times[-1] > 0


def test_corners_are_the_entries_of_a_table_in_the_direction_of_the_step():
    down = corners(TABLE, TABLE.node(6.5).lam, TABLE.node(2.0).lam)
    np.testing.assert_allclose(down, lam(*map(TABLE.node, (6, 5, 4, 3))), rtol=1e-12)
    np.testing.assert_array_equal(corners(TABLE, TABLE.node(2.5).lam, TABLE.node(6.5).lam), down[::-1])
    assert corners(fs.VPLinear(), -3.0, 3.0).size == 0


def test_the_grid_is_uniform_in_the_square_root_of_the_clock():
    for schedule in (fs.EDM(), fs.EDM(0.1, 10)):
        nodes = clock_quadratic(schedule, 8, to_zero=False)
        assert (nodes[0].sigma, nodes[-1].sigma) == (schedule.sigma_max, schedule.sigma_min)
        steps = np.diff(np.sqrt(clock(schedule, lam(*nodes))))
        np.testing.assert_allclose(steps, steps.mean(), rtol=1e-9)
    assert clock_quadratic(fs.EDM(), 3, to_zero=True)[-1].sigma == 0
    assert clock_quadratic(fs.VPLinear(), 5) == fs.time_quadratic(fs.VPLinear(), 5)


def test_the_grid_survives_pickling():
    again = pickle.loads(pickle.dumps(clock_quadratic(to_zero=True)))
    assert again == clock_quadratic(to_zero=True)
    assert math.isinf(again(fs.EDM(), 4)[-1].lam)
