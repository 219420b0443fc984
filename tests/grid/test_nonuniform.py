import pickle
import sys
from itertools import pairwise

import numpy as np
import pytest
from mpmath import mp, mpf

from fewstep import EDM, Flow, VPCosine, VPLinear, log_snr
from fewstep.grid import checked, dm_nonuniform
from fewstep.grid.nonuniform import FLOOR, objective
from golden import arrays, sd_table

pytest.importorskip("scipy")
EPS = sys.float_info.epsilon
SCHEDULES = [EDM(), EDM(0.5, 2.0), VPLinear(), VPCosine(), sd_table(), Flow(), Flow(shift=3.0)]
over_schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)


@pytest.mark.parametrize("key", [key for key in arrays("dm_nonuniform_objective") if key.endswith("__lambda")])
def test_objective_equals_the_authors(key):
    expected = arrays("dm_nonuniform_objective")[key.replace("lambda", "objective")]
    np.testing.assert_allclose(objective(arrays("dm_nonuniform_objective")[key]), expected, rtol=16 * EPS)


def by_quadrature(lams: list[float], power: int) -> float:
    """The docstring's objective, its integrals by quadrature."""
    n = len(lams) - 1
    nodes = [mpf(lam) for lam in lams]

    def error(i: int):
        return (1 + mp.exp(2 * nodes[i])) ** (-mpf(power) / 2) * mp.sqrt(1 + mp.exp(-2 * nodes[i]))

    def weight(s: int, j: int, order: int):
        others = [nodes[s - i] for i in range(order) if i != j]

        def integrand(x):
            return mp.exp(x) * mp.fprod((x - other) / (nodes[s - j] - other) for other in others)

        return mp.quad(integrand, [nodes[s], nodes[s + 1]]) * error(s - j)

    sums, alone = [mpf(0)] * n, mpf(0)
    for s in range(n):
        weights = [weight(s, j, min(s + 1, n - s, 3)) for j in range(min(s + 1, n - s, 3))]
        if s in (0, 1, 2, n - 1):
            alone += mp.sqrt(sum(w**2 for w in weights))
        else:
            for j, w in enumerate(weights):
                sums[s - j] += w
    return float(alone + sum(map(abs, sums)))


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 9])
def test_objective_is_its_definition(steps, power):
    lams = [-4.0 + 9 * (i / steps) ** 1.3 for i in range(steps + 1)]
    assert objective(np.array(lams), power) == pytest.approx(by_quadrature(lams, power), rel=1e-12)


def test_smoothing_bounds_the_objective_from_above():
    lams = np.linspace(-4, 6, 11)
    values = [float(objective(lams, mu=mu)) for mu in (0.0, 1e-3, 0.1)]
    assert values == sorted(values)
    assert values[1] - values[0] < 2e-2  # mu a term at the most, and 14 terms


@pytest.mark.parametrize("steps", range(6, 21, 2))
@pytest.mark.parametrize(("name", "schedule"), [("vp_linear", VPLinear()), ("edm", EDM())], ids=["vp", "edm"])
def test_the_optimum_is_no_worse_than_any_that_the_authors_search_finds(name, schedule, steps):
    lams = np.array([node.lam for node in dm_nonuniform(schedule, steps, to_zero=False)])
    found = [arrays("dm_nonuniform")[key] for key in arrays("dm_nonuniform") if key.endswith(f"N{steps}__lambda")]
    stored = [lam for lam in found if abs(lam[0] - lams[0]) < 1e-6]
    assert len(stored) == 2
    # At 6 steps all agree; the smoothing leaves 1e-6 a term.
    assert objective(lams) <= min(map(objective, stored)) * (1 + 1e-8)


def test_the_optimum_is_far_better_than_uniform_steps():
    for steps in (5, 8, 10, 20):
        optimal, uniform = (np.array([n.lam for n in g(EDM(), steps)]) for g in (dm_nonuniform, log_snr))
        assert objective(optimal) < 0.7 * objective(uniform)


@pytest.mark.parametrize("power", [1, 2])
def test_no_single_node_can_be_moved_to_gain(power):
    lams = np.array([node.lam for node in dm_nonuniform(EDM(), 10, power=power)])
    best = objective(lams, power)
    for i in range(1, 10):
        for shift in (-0.1, -0.01, -1e-3, 1e-3, 0.01, 0.1):
            moved = lams.copy()
            moved[i] += shift
            assert objective(moved, power) > best * (1 - 1e-6)


@over_schedules
def test_the_grid_has_steps_plus_one_falling_nodes_between_exact_ends(schedule):
    start, end = log_snr(schedule, 1, to_zero=False)
    clean = schedule.node(schedule.t_clean)
    for steps in [1, 2, 3, 4, 5, 6, 10, 17]:
        for to_zero in (None, True, False):
            nodes = dm_nonuniform(schedule, steps, to_zero=to_zero)
            assert len(nodes) == steps + 1
            assert checked(nodes) == nodes
            closes = end.sigma > 0 and (to_zero or (to_zero is None and end.nsr > 1 / 64))
            assert (nodes[0], nodes[-1]) == (start, clean if closes else end)
            assert not (closes and steps > 1) or nodes[-2] == end
            moves = [t.lam - s.lam for s, t in pairwise(nodes) if t.sigma > 0]
            assert all(move > 0.99 * FLOOR * sum(moves) / len(moves) for move in moves)


def test_fifty_steps_fall():
    nodes = dm_nonuniform(sd_table(), 50)
    assert len(nodes) == 51
    assert checked(nodes) == nodes


def test_the_search_is_kept_and_repeats_itself():
    from fewstep.grid.nonuniform import _optimum

    first = dm_nonuniform(VPLinear(), 9)
    hits = _optimum.cache_info().hits
    assert dm_nonuniform(VPLinear(), 9) == first
    assert _optimum.cache_info().hits == hits + 1
    _optimum.cache_clear()
    assert dm_nonuniform(VPLinear(), 9) == first


def test_power_is_one_or_two():
    with pytest.raises(ValueError, match=r"^power must be 1 or 2; got 3$"):
        dm_nonuniform(EDM(), 5, power=3)


def test_without_scipy_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match=r"^dm_nonuniform needs scipy: pip install 'fewstep\[bench\]'$"):
        dm_nonuniform(EDM(0.123, 45.6), 5)


def test_the_grid_is_a_value_that_survives_pickle():
    grid = dm_nonuniform(power=1, to_zero=True)
    assert pickle.loads(pickle.dumps(grid)) == grid
    assert grid(EDM(), 4) == dm_nonuniform(EDM(), 4, power=1, to_zero=True)
