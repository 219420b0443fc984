import math

import numpy as np
import pytest

import fewstep as fs
from fewstep import grid
from fewstep.grid import beta57, bong_tangent, ddim_uniform, laplace, normal, sgm_uniform, simple
from golden import sd_table

ALL = [simple, normal, sgm_uniform, ddim_uniform, beta57, bong_tangent, laplace]
SHIFTS = [1.0, 3.0, 7.0]
STEPS = [2, 4, 6, 7, 8, 10, 12, 20, 30]


def flow_table(shift):
    """sigmas of ComfyUI's ModelSamplingDiscreteFlow."""
    t = np.arange(1, 1001) / 1000
    return shift * t / (1 + (shift - 1) * t)


def sd_sigmas():
    cumulative = np.array(sd_table().alphas_cumprod)
    return np.sqrt((1 - cumulative) / cumulative)


def levels(nodes, nsr):
    return [node.nsr if nsr else node.sigma for node in nodes]


TABLES = [
    *((fs.Flow(shift=shift), flow_table(shift), False) for shift in SHIFTS),
    (sd_table(), sd_sigmas(), True),
    (fs.EDM(), np.exp(np.linspace(math.log(0.002), math.log(80), 1000)), True),
]
over_tables = pytest.mark.parametrize(("schedule", "table", "nsr"), TABLES, ids=lambda v: getattr(v, "shift", ""))


@over_tables
@pytest.mark.parametrize("steps", STEPS)
def test_simple_takes_the_entries_that_comfyui_takes(schedule, table, nsr, steps):
    stride = len(table) / steps
    want = [table[-(1 + int(x * stride))] for x in range(steps)] + [0.0]
    np.testing.assert_allclose(levels(simple(schedule, steps), nsr), want, rtol=1e-12)


@over_tables
@pytest.mark.parametrize("steps", STEPS)
def test_ddim_uniform_takes_the_entries_that_comfyui_takes_where_they_are_as_many_as_asked(schedule, table, nsr, steps):
    stride = max(len(table) // steps, 1)
    want = [*table[1::stride][::-1], 0.0]
    got = levels(ddim_uniform(schedule, steps), nsr)
    assert len(got) == steps + 1
    assert got[-2] == pytest.approx(table[1], rel=1e-12)
    if len(want) == steps + 1:
        np.testing.assert_allclose(got, want, rtol=1e-12)
    else:  # 6, 7, 12 and 30 of 1,000: it makes one step more
        assert len(want) == steps + 2
        assert steps in (6, 7, 12, 30)


def comfyui_time(schedule, table):
    """sigma at a time, and the times of both ends, of ComfyUI's model samplings."""
    if isinstance(schedule, fs.Flow):
        shift = schedule.shift
        return lambda t: shift * t / (1 + (shift - 1) * t), table[-1], table[0]
    if isinstance(schedule, fs.EDM):
        return np.exp, math.log(80), math.log(0.002)
    log = np.log(table)
    return lambda t: np.exp(np.interp(t, np.arange(len(log)), log)), len(log) - 1, 0


@over_tables
@pytest.mark.parametrize("steps", STEPS)
def test_normal_and_sgm_uniform_are_even_in_the_time_of_comfyui(schedule, table, nsr, steps):
    at, start, end = comfyui_time(schedule, table)
    # Between entries its tables are linear in log sigma, ours in log alpha: the thousandth part of a step of the table.
    rtol = 1e-4 if isinstance(schedule, fs.Discrete) else 1e-12
    even = [*at(np.linspace(start, end, steps)), 0.0]
    np.testing.assert_allclose(levels(normal(schedule, steps), nsr), even, rtol=rtol)
    short = [*at(np.linspace(start, end, steps + 1)[:-1]), 0.0]
    np.testing.assert_allclose(levels(sgm_uniform(schedule, steps), nsr), short, rtol=rtol)


@over_tables
@pytest.mark.parametrize("steps", STEPS)
def test_beta57_takes_the_entries_that_res4lyf_takes(schedule, table, nsr, steps):
    stats = pytest.importorskip("scipy.stats", reason="needs the extra bench")
    for a, b in ((0.5, 0.7), (0.6, 0.6)):
        quantiles = stats.beta.ppf(1 - np.linspace(0, 1, steps, endpoint=False), a, b)
        want = [*table[np.rint(quantiles * (len(table) - 1)).astype(int)], 0.0]
        np.testing.assert_allclose(levels(beta57(schedule, steps, a=a, b=b), nsr), want, rtol=1e-12)


def test_beta57_refuses_to_repeat_an_entry():
    with pytest.raises(ValueError, match=r"beta57\(a=0.5, b=0.7\) visits a noise level twice in 300 steps"):
        beta57(sd_table(), 300)


@pytest.mark.parametrize("steps", STEPS)
def test_bong_tangent_has_the_two_arcs(steps):
    """Each an affine image of -atan(slope (i - pivot)), which meet at 1/2; the slopes and pivots are RES4LYF's."""
    got = np.array(levels(bong_tangent(fs.Flow(shift=3.0), steps), False))
    assert (got[0], got[-1], len(got)) == (1.0, 0.0, steps + 1)
    points = steps + 2
    middle = int((points * 0.6 + points * 0.6) / 2)
    assert got[middle - 1] == 0.5
    slope = 0.2 / (points / 40)
    for arc, pivot in ((got[:middle], int(points * 0.6)), (got[middle - 1 :], int(points * 0.6) - middle)):
        falls = -np.arctan(slope * (np.arange(len(arc)) - pivot))
        affine = (falls - falls[-1]) / (falls[0] - falls[-1])
        np.testing.assert_allclose((arc - arc[-1]) / (arc[0] - arc[-1]), affine, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("steps", [2, 5, 8, 20])
def test_laplace_has_the_quantiles_of_a_laplace_distribution(steps):
    stats = pytest.importorskip("scipy.stats", reason="needs the extra bench")
    nodes = laplace(fs.EDM(0.001, 400.0), steps, mu=0.3, beta=0.4)
    u = np.linspace(0, 1, steps + 1)[1:-1]
    want = np.exp(stats.laplace.ppf(1 - u, loc=0.3, scale=0.4))
    # ComfyUI adds 1e-5 under the logarithm.
    np.testing.assert_allclose([node.sigma for node in nodes[1:-1]], want, rtol=1e-4)
    assert nodes[0].sigma == pytest.approx(math.exp(0.3 - 0.4 * math.log(1e-5)), rel=1e-9)


@pytest.mark.parametrize("each", ALL, ids=repr)
@pytest.mark.parametrize("steps", [2, 3, 9, 25])
def test_every_name_makes_a_grid_of_as_many_steps(each, steps):
    schedules = [fs.Flow(shift=3.0)] if each is bong_tangent else [fs.Flow(), fs.EDM(), fs.VPLinear(), sd_table()]
    for schedule in schedules:
        nodes = grid.checked(each(schedule, steps))
        assert len(nodes) == steps + 1
        assert each is laplace or nodes[-1].sigma == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bong_tangent(fs.EDM(), 5), "bong_tangent is a grid for Flow"),
        (lambda: bong_tangent(fs.Flow(), 1), "bong_tangent needs at least 2 steps; got 1"),
        (lambda: ddim_uniform(sd_table(), 600), "ddim_uniform has no grid of 600 steps of 1000 entries"),
        (lambda: ddim_uniform(sd_table(), 1001), "ddim_uniform has no grid of 1001 steps"),
        (lambda: beta57(sd_table(), 5, a=0.0), "a and b must be positive and finite; got a=0.0"),
        (lambda: beta57(sd_table(), 5, b=math.inf), "a and b must be positive and finite; got a=0.5, b=inf"),
        (lambda: laplace(fs.EDM(), 5, beta=0.0), "beta positive; got mu=0.0, beta=0.0"),
        (lambda: laplace(fs.EDM(0.5, 2.0), 20), "visits a noise level twice in 20 steps"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()
