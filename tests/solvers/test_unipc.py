import math

import mpmath
import numpy as np
import pytest

import fewstep as fs
from fewstep.solvers.core.base import Row, euler_row, scale_and_level
from fewstep.solvers.core.exponential import psi
from fewstep.solvers.unipc import _solve
from golden import GRIDS, assert_matches, entries
from peers import assert_equals_scheduler

KEYS = list(entries("unipc"))


class OneRowOfTheInverse(fs.UniPC):
    """The authors' `vary_coeff` as published: how its corrector takes the coefficients from A, the inverse of C."""

    def _row(self, nodes, i, order, corrector):
        row = super()._row(nodes, i, order, corrector)
        if not corrector or order == 1:
            return row
        s, t = nodes[i : i + 2]
        h = t.lam - s.lam
        z = -h if self.field == "data" else h
        r = [(nodes[i - k].lam - s.lam) / h for k in range(1, order)] + [1.0]
        c = np.array([[r_k ** (n - 1) / math.factorial(n) for n in range(1, order + 1)] for r_k in r])
        a, terms = np.linalg.inv(c), [psi(n, z) for n in range(1, order + 1)]
        of_d = [sum(terms[n] * a[n][k] for n in range(order - 1)) for k in range(order - 1)]
        of_d.append(terms[-1] * a[order - 2][-1])
        _, level = scale_and_level(self.field, t)
        slopes = -level * np.array(of_d) / r
        first = euler_row(self.field, s, t)
        return Row(first.scale, (slopes[-1], first.weights[0] - slopes.sum(), *slopes[:-1]))


@pytest.mark.parametrize("key", KEYS)
def test_equals_the_authors_code(key):
    """`vary_coeff` with its slip put in."""
    schedule_name, variant, order, *rest = key.split("__")
    closing = "dtz1" in rest
    if schedule_name == "edm":
        schedule, field, grid = fs.EDM(), "data", rest[0]
        steps = int(rest[1][3:]) - closing
    else:
        schedule, grid = fs.VPLinear(), rest[0]
        steps, field = int(rest[1][5:]), rest[2].removesuffix("_prediction")
    method = OneRowOfTheInverse if variant == "vary_coeff" else fs.UniPC
    solver = method(int(order[-1]), variant.removesuffix("_coeff"), field=field, final_order=3 if "lof0" in rest else 1)
    nodes = GRIDS[grid](schedule, steps + closing, to_zero=closing)
    assert_matches("unipc", key, solver, schedule, nodes)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("without", [(), (0,), (0, 1, 4), "all"])
def test_equals_diffusers(order, without):
    """With bh2 only: diffusers' bh1 returns NaN where the run ends at sigma = 0."""
    diffusers = pytest.importorskip("diffusers", reason="needs the extra diffusers")
    scheduler = diffusers.UniPCMultistepScheduler(
        solver_order=order,
        solver_type="bh2",
        beta_schedule="scaled_linear",
        final_sigmas_type="zero",
        disable_corrector=list(range(10)) if without == "all" else list(without),
    )
    assert_equals_scheduler(scheduler, fs.UniPC(order, final_order=2, no_corrector=without))


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("field", ["data", "noise"])
def test_equals_diffusers_where_the_run_stops_at_noise(order, variant, field):
    diffusers = pytest.importorskip("diffusers", reason="needs the extra diffusers")
    scheduler = diffusers.UniPCMultistepScheduler(
        solver_order=order,
        solver_type=variant,
        predict_x0=field == "data",
        beta_schedule="scaled_linear",
        final_sigmas_type="sigma_min",
    )
    assert_equals_scheduler(scheduler, fs.UniPC(order, variant, field, final_order=1))


@pytest.mark.parametrize("order", [2, 3, 4])
@pytest.mark.parametrize("field", ["data", "noise"])
def test_vary_is_exact_for_polynomial_predictions(order, field):
    """The predictor up to degree order - 1 in log-SNR, the corrector up to degree order."""
    sigmas = (80.0, 30.0, 11.0, 5.0, 3.0, 0.9, 0.5)
    nodes = fs.from_times(fs.EDM(), sigmas)
    stages = fs.UniPC(order, "vary", field, final_order=4).plan(fs.EDM(), nodes)
    s, t = nodes[4:6]
    sign = 1 if field == "data" else -1  # d(x / sigma) = D d(1 / sigma), d(x) = e d(sigma)
    for row, newest, highest in ((stages[4].move, 4, order - 1), (stages[5].correct, 5, order)):
        for degree in range(highest + 1):
            past = [nodes[i].lam ** degree for i in range(newest, newest - len(row.weights), -1)]
            integral = mpmath.quad(lambda lam, n=degree: lam**n * mpmath.exp(sign * lam), [s.lam, t.lam])
            want = float(integral) * (t.sigma if field == "data" else -1)
            got = np.dot(row.weights, past)
            assert got == pytest.approx(want, abs=1e-13 * np.abs(np.multiply(row.weights, past)).max())


def test_vary_differs_from_bh_only_in_the_systems_of_one_equation():
    nodes = fs.log_snr(fs.EDM(), 8, to_zero=False)
    plans = [fs.UniPC(4, variant, final_order=4).plan(fs.EDM(), nodes) for variant in ("vary", "bh1", "bh2")]
    rows = [[row for stage in stages for row in (stage.move, stage.correct) if row] for stages in plans]
    assert {len(row.weights) for row in rows[0]} == {1, 2, 3, 4, 5}
    for vary, *others in zip(*rows, strict=True):
        for other in others:
            same = other.weights == pytest.approx(vary.weights, rel=1e-10)
            assert same == (len(vary.weights) != 2)  # one unknown, the weight of the one difference


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


def test_correctors_can_be_left_out():
    nodes = fs.log_snr(fs.EDM(), 6, to_zero=False)

    def corrected(without):
        stages = fs.UniPC(3, no_corrector=without).plan(fs.EDM(), nodes)
        assert [stage.hold for stage in stages] == [later.correct is not None for later in stages[1:]] + [False]
        return [i for i, stage in enumerate(stages) if stage.hold]

    assert corrected(()) == [0, 1, 2, 3, 4]
    assert corrected((0, 3, 20)) == [1, 2, 4]
    assert corrected("all") == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 5}, "order must be one of 1, 2, 3, 4; got 5"),
        ({"order": np.float32(2)}, r"order must be one of 1, 2, 3, 4; got np.float32\(2.0\)"),
        ({"order": np.bool_(True)}, "order must be one of 1, 2, 3, 4; got np.True_"),
        ({"variant": "vary_coeff"}, "variant must be one of 'bh1', 'bh2', 'vary'; got 'vary_coeff'"),
        ({"field": "velocity"}, "field must be one of 'data', 'noise'; got 'velocity'"),
        ({"final_order": 0}, "final_order must be one of None, 1, 2, 3, 4; got 0"),
        ({"no_corrector": [0]}, r'no_corrector must be "all" or a tuple of steps, the first is 0; got \[0\]'),
        ({"no_corrector": (-1,)}, r"no_corrector must be .*; got \(-1,\)"),
        ({"no_corrector": "none"}, "no_corrector must be .*; got 'none'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        fs.UniPC(**options)
