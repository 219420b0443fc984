"""Rows and orders that every linear solver is made of."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fewstep as fs
from fewstep.solvers.core.base import LinearStage, Row, State, euler_row, orders, spend

FIELDS = ("data", "noise", "velocity")
noisy = st.floats(1e-4, 1e4)


@given(field=st.sampled_from(FIELDS), s=noisy, t=noisy, vp=st.booleans(), c=st.floats(-2, 2), z=st.floats(-2, 2))
def test_the_first_order_row_carries_a_point_mass(field, s, t, vp, c, z):
    """For x_0 = c, every prediction is constant along x = alpha c + sigma z, and one step is exact."""

    def node(nsr):
        return fs.Node(nsr, 1 / math.hypot(1, nsr), nsr / math.hypot(1, nsr)) if vp else fs.Node(nsr, 1.0, nsr)

    a, b = node(s), node(t)
    prediction = {"data": c, "noise": z, "velocity": z - c}[field]
    row = euler_row(field, a, b)
    got = row.scale * (a.alpha * c + a.sigma * z) + row.weights[0] * prediction
    size = abs(row.scale) * (abs(a.alpha * c) + abs(a.sigma * z)) + abs(row.weights[0] * prediction) + 1
    assert got == pytest.approx(b.alpha * c + b.sigma * z, rel=0, abs=8 * 2**-52 * size)


def test_the_three_fields_are_one_method_at_first_order():
    s, t = fs.VPLinear().node(0.8), fs.VPLinear().node(0.5)
    x, denoised = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    results = [LinearStage(s, euler_row(field, s, t), field)(None, x, denoised)[0] for field in FIELDS]
    torch.testing.assert_close(results[0], results[1], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(results[0], results[2], rtol=1e-13, atol=1e-13)


def test_a_step_to_zero_returns_the_denoised_and_from_pure_noise_is_finite():
    clean, pure, half = fs.Flow().node(0.0), fs.Flow().node(1.0), fs.Flow().node(0.5)
    assert euler_row("data", half, clean) == Row(0.0, (1.0,))
    assert euler_row("velocity", pure, half) == Row(1.0, (-0.5,))
    with pytest.raises(ValueError, match=r'field has no step away from alpha = 0.*field="velocity"'):
        euler_row("noise", pure, half)


def test_orders_warm_up_and_come_down():
    closed = fs.log_snr(fs.EDM(), 8, to_zero=True)
    assert orders(closed, 3, 1) == [1, 2, 3, 3, 3, 2, 1, 1]
    assert orders(closed, 3, 2) == [1, 2, 3, 3, 3, 3, 2, 1]
    assert orders(closed, 3, 3) == [1, 2, 3, 3, 3, 3, 3, 1]
    assert orders(closed[:-1], 3, 1) == [1, 2, 3, 3, 3, 2, 1]
    assert orders(closed[:2], 3, 3) == [1]


def test_orders_do_not_reach_back_to_pure_noise():
    nodes = fs.time_uniform(fs.Flow(), 5)
    assert nodes[0].alpha == 0
    assert orders(nodes, 3, 3) == [1, 1, 2, 3, 1]


def test_a_row_refuses_a_short_history():
    stage = LinearStage(fs.Node(1.0, 1.0, 1.0), Row(0.5, (1.0, -0.5)))
    x = torch.ones(1, 2)
    with pytest.raises(ValueError, match="needs the last 2 predictions but was given 1"):
        stage(None, x, x)
    stage(State(None, (x,)), x, x)


def test_spend_names_the_cost():
    assert spend([1, 2], 2, 2) == [1, 2]
    assert spend([1, 2], None, 2) == [1, 2]
    with pytest.raises(ValueError, match="costs this solver 2 calls; got nfe=3"):
        spend([1, 2], 3, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fs.DPMSolverPP(order=4), "order must be one of 1, 2, 3; got 4"),
        (lambda: fs.DPMSolverPP(variant="heun"), "variant must be one of 'midpoint', 'taylor'; got 'heun'"),
        (lambda: fs.DPMSolverPP(final_order=0), "final_order must be one of None, 1, 2, 3; got 0"),
        (lambda: fs.UniPC(order=0), "order must be one of 1, 2, 3, 4; got 0"),
        (lambda: fs.UniPC(variant="bh3"), "variant must be one of 'bh1', 'bh2', 'vary'; got 'bh3'"),
        (lambda: fs.UniPC(field="velocity"), "field must be one of 'data', 'noise'; got 'velocity'"),
        (lambda: fs.Heun(field="data"), "field must be one of 'noise', 'velocity'; got 'data'"),
        (lambda: fs.EVODiff(mode="best"), "mode must be one of 'least-variance', 'published', 'paper'; got 'best'"),
        (lambda: fs.EVODiff(channel_dim=0), "channel_dim must not be 0"),
    ],
)
def test_wrong_options_are_refused_at_the_door(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_choice_is_of_its_kind():
    for value in (True, 2.0, "2", 4):
        with pytest.raises(ValueError, match="order must be one of 1, 2, 3; got"):
            fs.DPMSolverPP(order=value)
    assert fs.DPMSolverPP(order=2).order == 2
