import functools
import itertools
import math

import numpy as np
import pytest

import fewstep as fs
from benchmarks import orders
from benchmarks.problems import gaussian
from fewstep.grid import scire_nsr
from fewstep.solvers import scire
from fewstep.solvers.core.base import euler_row
from fewstep.solvers.scire import SciRE
from golden import TIMES_TOL, arrays, entries, noise, problem, sd_table

GRIDS = {"NSR": scire_nsr, "time_uniform": fs.time_uniform}
KEYS = list(entries("scire_solver"))
INNER_GRID = [k for k in KEYS if k.startswith("sd_discrete") and "singlestep" in k]


def configured(key):
    """The solver, the schedule, the nodes and the calls of a golden."""
    schedule_name, version, method, order, skip, steps = key.split("__")
    order, steps = int(order[-1]), int(steps[5:])
    method, _, packing = method.partition("_")
    solver = SciRE(version.removeprefix("scire_"), method, order)
    schedule = sd_table() if schedule_name == "sd_discrete" else fs.VPLinear()
    grid = functools.partial(GRIDS[skip], schedule, to_zero=False)
    if packing == "fixed":
        return solver, schedule, grid(steps // order), steps - steps % order
    nodes = grid(steps)
    if packing == "agile":  # a step of order k spans k steps of the grid; none of order 3 ends a run
        whole, rest = divmod(steps, order)
        ends = [order, rest] if rest else [2, 1] if order == 3 else [order]
        spans = [order] * (whole - 1) + ends
        nodes = [nodes[i] for i in itertools.accumulate(spans, initial=0)]
    return solver, schedule, nodes, steps


def assert_matches(key, stages, schedule):
    facts = entries("scire_solver")[key]
    assert len(stages) == facts["nfe"]
    denoiser = problem().denoiser(schedule)
    x, state = noise(), None
    for stage in stages:
        x, state = stage(state, x, denoiser(x, stage.node.time))
    np.testing.assert_allclose(x.numpy(), arrays("scire_solver")[key], rtol=0, atol=TIMES_TOL * facts["tol"])


@pytest.mark.parametrize("key", [k for k in KEYS if k not in INNER_GRID])
def test_equals_the_authors_code(key):
    solver, schedule, nodes, calls = configured(key)
    assert_matches(key, solver.plan(schedule, nodes, calls), schedule)


@pytest.mark.parametrize("key", INNER_GRID)
def test_equals_the_authors_code_with_the_fractions_of_its_inner_grids(key, monkeypatch):
    """On discrete schedules the code reads the fractions off a grid of sigma / alpha inside each step."""
    solver, schedule, nodes, calls = configured(key)

    def fractions(s, t, order):
        if "__NSR__" in key:
            inner = np.geomspace(s.nsr + 3.1 * t.nsr, 4.1 * t.nsr, order + 1) - 3.1 * t.nsr
        else:
            inner = [schedule.node(s.time + i / order * (t.time - s.time)).nsr for i in range(order + 1)]
        return [(n - s.nsr) / (t.nsr - s.nsr) for n in inner[1:-1]]

    plain = scire.single_step
    monkeypatch.setattr(
        scire, "single_step", lambda a, b, s, t, phi, r: plain(a, b, s, t, phi, fractions(s, t, len(r) + 1))
    )
    assert_matches(key, solver.plan(schedule, nodes, calls), schedule)


@pytest.mark.parametrize("name", ["vp_linear", "sd_discrete"])
def test_the_grid_is_the_authors(name):
    schedule = sd_table() if name == "sd_discrete" else fs.VPLinear()
    nodes = scire_nsr(schedule, 10, to_zero=False)
    want = arrays("scire_solver")[f"grid__{name}__NSR__steps10__nsr"]
    np.testing.assert_allclose([node.nsr for node in nodes], want, rtol=1e-10)


@pytest.mark.parametrize("entries_in_table", [3, 6, 11, 13])
def test_phi_is_the_authors_table(entries_in_table):
    want = arrays("scire_solver")[f"series_phi__1__{entries_in_table}"]
    np.testing.assert_allclose([scire._phi(i) for i in range(entries_in_table)], want, rtol=1e-14)


STEPS = (60, 120, 240)


@functools.cache
def solution():
    """A mixture's: on a Gaussian the second-order errors of the midpoint rule cancel."""
    schedule, mixture = fs.EDM(0.1, 1.0), gaussian(components=2)
    x = orders.start(mixture, schedule.node(1.0))
    nodes = fs.log_snr(schedule, 1000, to_zero=False)
    return schedule, mixture, fs.integrate(mixture.denoiser(schedule), x, nodes, solver=fs.UniPC(3), schedule=schedule)


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("method", ["multistep", "singlestep"])
@pytest.mark.parametrize("order", [2, 3])
def test_differences_divided_by_phi_are_of_order_one_and_plain_ones_of_order_two(version, method, order, monkeypatch):
    schedule, mixture, exact = solution()
    monkeypatch.setattr(orders, "reference", lambda *_: exact)
    for phi, want in ((None, 1), (1.0, 2)):
        errors = orders.convergence(SciRE(version, method, order, phi), schedule, mixture, STEPS)
        assert orders.fitted_order(STEPS, errors) == pytest.approx(want, abs=0.15)


@pytest.mark.parametrize(("version", "field"), [("v1", "noise"), ("v2", "data")])
def test_a_single_step_of_order_two_with_phi_one_is_the_midpoint_rule(version, field):
    """y_t = y + h d(y + h / 2 d): for y = x / scale, u = level / scale, called at the middle of u."""
    schedule = fs.VPLinear()
    nodes = fs.log_snr(schedule, 3, to_zero=False)
    stages = SciRE(version, "singlestep", phi=1.0).plan(schedule, nodes)
    assert len(stages) == 6
    for i, (s, t) in enumerate(itertools.pairwise(nodes)):
        first, second = stages[2 * i : 2 * i + 2]
        u = [node.nsr if version == "v1" else 1 / node.nsr for node in (s, second.node, t)]
        assert u[1] == pytest.approx((u[0] + u[2]) / 2, rel=1e-12)
        assert first.node == s
        assert first.move == euler_row(field, s, second.node)
        assert second.move == euler_row(field, s, t, (1.0, 0.0))
        assert (first.hold, second.hold) == (True, False)


def test_a_smaller_budget_lowers_the_last_single_steps():
    nodes = scire_nsr(fs.EDM(), 3, to_zero=False)

    def lengths(nfe):
        stages = SciRE("v1", "singlestep", 3).plan(fs.EDM(), nodes, nfe)
        places = [i for i, stage in enumerate(stages) if stage.node in nodes]
        return [b - a for a, b in itertools.pairwise([*places, len(stages)])]

    assert [lengths(nfe) for nfe in (9, 8, 7, 6, 3)] == [[3, 3, 3], [3, 3, 2], [3, 3, 1], [3, 2, 1], [1, 1, 1]]
    with pytest.raises(ValueError, match="a grid of 3 steps costs this solver 3 to 9 calls; got nfe=10"):
        lengths(10)


def test_ends_at_infinite_log_snr_are_steps_of_order_one():
    nodes = fs.time_uniform(fs.Flow(), 4)
    stages = SciRE("v2", "singlestep", 3).plan(fs.Flow(), nodes)
    assert [stage.hold for stage in stages] == [False, True, True, False, True, True, False, False]
    with pytest.raises(ValueError, match="no step away from alpha = 0"):
        SciRE("v1").plan(fs.Flow(), nodes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version": "v3"}, "version must be one of 'v1', 'v2'; got 'v3'"),
        ({"method": "single"}, "method must be one of"),
        ({"order": 1}, "order must be one of 2, 3; got 1"),
        ({"phi": 0.0}, "phi must be positive and finite"),
        ({"phi": math.inf}, "phi must be positive and finite"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SciRE(**options)
