import numpy as np
import pytest

import fewstep as fs
from fewstep.solvers.base import psi
from fewstep.solvers.unipc import _solve
from golden import GRIDS, assert_matches, entries
from peers import assert_equals_scheduler

KEYS = [k for k in entries("unipc") if "vary_coeff" not in k]


@pytest.mark.parametrize("key", KEYS)
def test_equals_the_authors_code(key):
    schedule_name, variant, order, *rest = key.split("__")
    closing = "dtz1" in rest
    if schedule_name == "edm":
        schedule, field, grid = fs.EDM(), "data", rest[0]
        steps = int(rest[1][3:]) - closing
    else:
        schedule, grid = fs.VPLinear(), rest[0]
        steps, field = int(rest[1][5:]), rest[2].removesuffix("_prediction")
    solver = fs.UniPC(int(order[-1]), variant, field=field, final_order=3 if "lof0" in rest else 1)
    nodes = GRIDS[grid](schedule, steps + closing, to_zero=closing)
    assert_matches("unipc", key, solver, schedule, nodes)


@pytest.mark.parametrize("order", [2, 3])
def test_equals_diffusers(order):
    """With bh2 only: diffusers' bh1 returns NaN where the run ends at sigma = 0."""
    diffusers = pytest.importorskip("diffusers", reason="needs the extra diffusers")
    scheduler = diffusers.UniPCMultistepScheduler(
        solver_order=order, solver_type="bh2", beta_schedule="scaled_linear", final_sigmas_type="zero"
    )
    assert_equals_scheduler(scheduler, fs.UniPC(order, final_order=2))


@pytest.mark.parametrize("r", [(-1.0, 1.0), (-0.7, -1.9, 1.0), (-1.0, -2.0)])
@pytest.mark.parametrize("z", [-2.0, -0.1, 0.5])
def test_weights_satisfy_the_order_conditions(r, z):
    """sum_k r_k^(j-1) rho_k = j! psi(j, z) / B for j = 1 ... p: what makes the method of order p."""
    rho = _solve(r, z, z)
    for j in range(1, len(r) + 1):
        want = np.prod(range(1, j + 1)) * psi(j, z) / z
        assert np.dot(np.array(r) ** (j - 1), rho) == pytest.approx(want, rel=1e-12, abs=1e-14)


def test_no_corrector_where_it_would_cost_a_call_or_do_nothing():
    stopping = fs.UniPC(3).plan(fs.EDM(), fs.log_snr(fs.EDM(), 6, to_zero=False))
    assert [stage.hold for stage in stopping] == [True] * 5 + [False]
    assert [stage.correct is not None for stage in stopping] == [False] + [True] * 5
    closing = fs.UniPC(3).plan(fs.EDM(), fs.log_snr(fs.EDM(), 6, to_zero=True))
    assert closing[-1].correct is None
    flow = fs.UniPC(3).plan(fs.Flow(), fs.time_uniform(fs.Flow(), 6))
    assert flow[1].correct is None  # the step from pure noise
