import numpy as np
import pytest

import fewstep as fs
from fewstep.solvers.core.base import Row
from golden import GRIDS, assert_matches, entries, zju_nodes

ALL = {k: facts for k, facts in entries("zju_diff_solvers").items() if k.startswith("ipndm")}
# An analytic first step saves a call at the start: x is moved before the model has been asked, which no plan does.
AFS = [k for k in ALL if "_afs" in k]
SLIPS = [k for k in ALL if k.startswith(("ipndm_v3", "ipndm_v4"))]


def from_key(key):
    variable = key.startswith("ipndm_v")
    return fs.IPNDM(int(key.removeprefix("ipndm").removeprefix("_v")[0]), variable), zju_nodes(key)


@pytest.mark.parametrize("key", [k for k in ALL if k not in AFS + SLIPS])
def test_equals_diff_sampler(key):
    assert_matches("zju_diff_solvers", key, from_key(key)[0], fs.EDM(), from_key(key)[1])


def differences(slips, h, h1, h2, h3=None):
    """Adams-Bashforth of orders 3 and 4 in divided differences, with the steps newest first; or as published."""
    a, b = h / (3 * (h + h1)), h * (h + h1) / (h1 * (h1 + h2))
    k = h1 / h2
    second = (1 - a * b) / 2 if slips else (1 - a) * b / 2
    weights = np.array([1 + h / h1 / 2, -h / h1 / 2, 0, 0]) + second * np.array([1, -1 - k, k, 0])
    if h3 is None:
        return weights[:3]
    c, m = h + h1 + h2, h1 * (h1 + h2) / (h2 * (h2 + h3))
    third = (1 - a) / 2 + (1 if slips else -1) * (1 - h / (2 * (h + h1))) * h / (6 * c)
    third *= h * (h + h1) * c / (h1 * (h1 + h2) * (h1 + h2 + h3))
    return weights + third * np.array([1, -1 - k - m, k + m * (1 + h2 / h3), -m * (h1 / h2 if slips else h2 / h3)])


class AsPublished(fs.IPNDM):
    def plan(self, schedule, nodes, nfe=None):
        stages = super().plan(schedule, nodes, nfe)
        steps = np.diff([node.sigma for node in nodes])
        for i in range(2, len(stages)):
            used = steps[max(0, i + 1 - self.order) : i + 1][::-1]
            move = Row(1.0, tuple((steps[i] * differences(True, *used)).tolist()))
            stages[i] = stages[i]._replace(move=move)
        return stages


@pytest.mark.parametrize("key", SLIPS)
def test_with_its_slips_put_in_it_equals_published_ipndm_v(key):
    """A misplaced bracket in the second difference, and in order 4 a sign and a factor of the third."""
    solver, nodes = from_key(key)
    assert_matches("zju_diff_solvers", key, AsPublished(solver.order, True), fs.EDM(), nodes)


@pytest.mark.parametrize("order", [3, 4])
def test_without_the_slips_the_published_formula_is_ours(order):
    nodes = fs.from_times(fs.EDM(), (80, 24, 5.8, 0.97, 0.085)[: order + 1])
    steps = -np.diff([node.sigma for node in nodes])[::-1]
    row = fs.IPNDM(order, True).plan(fs.EDM(), nodes)[-1].move
    assert np.array(row.weights) / -steps[0] == pytest.approx(differences(False, *steps), rel=1e-13)


def test_the_goldens_are_all_used():
    assert len(ALL) == 38
    assert len(AFS) == 1
    assert {facts["schedule"] for facts in ALL.values()} <= set(GRIDS)


@pytest.mark.parametrize("order", [2, 3, 4])
@pytest.mark.parametrize("field", ["noise", "velocity"])
def test_with_variable_weights_it_is_rho_ab_deis(order, field):
    nodes = fs.karras(fs.VPLinear(), 7, to_zero=True)
    want = fs.DEIS(order, "rhoab", field, final_order=order).plan(fs.VPLinear(), nodes)
    assert fs.IPNDM(order, True, field).plan(fs.VPLinear(), nodes) == want


@pytest.mark.parametrize("variable", [False, True])
def test_order_one_is_ddim(variable):
    nodes = fs.karras(fs.EDM(), 7, to_zero=True)
    data, noise = (solver.plan(fs.EDM(), nodes) for solver in (fs.DDIM(), fs.IPNDM(1, variable)))
    for a, b in zip(data, noise, strict=True):
        # x - sigma e is the denoised image.
        assert b.move.scale + b.move.weights[0] / b.node.sigma == pytest.approx(a.move.scale, rel=1e-14, abs=1e-16)


def test_a_flow_needs_the_velocity_field():
    nodes = fs.time_uniform(fs.Flow(), 4)
    with pytest.raises(ValueError, match='field="velocity"'):
        fs.IPNDM().plan(fs.Flow(), nodes)
    assert [len(s.move.weights) for s in fs.IPNDM(field="velocity").plan(fs.Flow(), nodes)] == [1, 2, 3, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 5}, "order must be one of 1, 2, 3, 4; got 5"),
        ({"variable": "yes"}, "variable must be one of False, True; got 'yes'"),
        ({"field": "data"}, "field must be one of 'noise', 'velocity'; got 'data'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        fs.IPNDM(**options)
