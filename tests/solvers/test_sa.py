import itertools
import math

import mpmath
import numpy as np
import pytest
import torch

import fewstep as fs
from fewstep.solvers.sa import SASolver
from golden import TIMES_TOL, arrays, entries, noise, problem
from peers import assert_equals_scheduler

KEYS = list(entries("sa_solver"))
VP = fs.VPLinear()


def configured(key):
    _, mode, orders, skip, steps, pc_mode, tau, *field = key.split("__")
    few = mode == "few_steps"
    corrects = orders[3] != "0"
    solver = SASolver(
        int(orders[1]),
        int(orders[3]),
        tau=float(tau.removeprefix("tau")),
        mode=pc_mode,
        rescale=few,
        correct_last=not few and corrects,
        field="noise" if field else "data",
        final_order=1,
    )
    name = f"grid__vp_linear__{skip if skip[-1].isdigit() else skip + '1'}__{steps}__t"
    times = arrays("sa_solver")[name].tolist()
    return solver, fs.from_times(VP, times if few else [*times, VP.t_clean]), corrects or few


@pytest.mark.parametrize("key", KEYS)
def test_equals_the_authors_code(key):
    """Where it calls twice at one point (more_steps without a corrector), we call once."""
    facts = entries("sa_solver")[key]
    solver, nodes, calls_differ_not = configured(key)
    stages = solver.plan(VP, nodes)
    assert len(stages) == facts["nfe"] - (not calls_differ_not)
    denoiser = problem().denoiser(VP)
    draws = iter(torch.tensor(arrays("sa_solver")["noise_sequence"])[1:])
    x, state = noise(), None
    for stage in stages:
        x, state = stage(state, x, denoiser(x, stage.node.time))
        if stage.noise:
            x = x + stage.noise * next(draws)
    np.testing.assert_allclose(x.numpy(), arrays("sa_solver")[key], rtol=0, atol=TIMES_TOL * facts["tol"])


@pytest.mark.parametrize("orders", [(1, 1), (1, 2), (2, 2), (3, 3), (3, 4)])
def test_equals_diffusers(orders):
    diffusers = pytest.importorskip("diffusers", reason="needs the extra diffusers")
    scheduler = diffusers.SASolverScheduler(
        predictor_order=orders[0], corrector_order=orders[1], tau_func=lambda t: 0, beta_schedule="scaled_linear"
    )
    assert_equals_scheduler(scheduler, SASolver(*orders, tau=0.0, final_order=1))


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("field", ["data", "noise"])
@pytest.mark.parametrize("to_zero", [True, False])
def test_without_noise_it_is_unipc_with_bh1(order, field, to_zero):
    nodes = fs.log_snr(VP, 9, to_zero=to_zero)
    ours, unipc = SASolver(order, order + 1, tau=0.0, field=field), fs.UniPC(order, "bh1", field)
    got, want = (
        fs.integrate(problem().denoiser(VP), noise(), nodes, solver=solver, schedule=VP) for solver in (ours, unipc)
    )
    # The same weights by other formulas: roundings, of x / alpha in the noise field.
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("h", [1e-4, 1e-2, 0.9, 1.1, 10.0])
@pytest.mark.parametrize("tau", [0.0, 1.0])
@pytest.mark.parametrize("field", ["data", "noise"])
@pytest.mark.parametrize("corrector", [True, False])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_weights_are_integrals_of_lagrange_polynomials(h, tau, field, corrector, order):
    lams = [-2.3 * h, -1.6 * h, -0.7 * h, 0.0, h, 2 * h]
    nodes = [fs.Node(-lam, 1.0, math.exp(-lam)) for lam in lams]  # alpha = 1
    row = SASolver(tau=tau, field=field, rescale=False)._row(nodes, 3, order, corrector)
    with mpmath.workdps(50):
        s, t = mpmath.mpf(nodes[3].lam), mpmath.mpf(nodes[4].lam)
        points = [mpmath.mpf(node.lam) for node in nodes[3 + corrector :: -1]][:order]
        a = 1 + mpmath.mpf(tau) ** 2
        for k, weight in enumerate(row.weights):

            def integrand(lam, k=k):
                others = [p for j, p in enumerate(points) if j != k]
                lagrange = mpmath.fprod((lam - p) / (points[k] - p) for p in others)
                kernel = mpmath.exp(a * (lam - t)) if field == "data" else -mpmath.exp(-lam)
                return a * kernel * lagrange

            want = mpmath.quad(integrand, [s, t])
            # In units of the greatest weight: those of high order nearly cancel. Points of 16 digits, 1e-4 apart.
            size = max(abs(w) for w in row.weights)
            assert abs(weight - want) < max(1e-13, 1e-15 / h) * size
        scale = mpmath.exp(-a * (t - s)) if field == "data" else 1
        assert abs(row.scale - scale) < max(1e-13, 1e-15 / h) * scale


@pytest.mark.parametrize("orders", [(3, 4), (2, 2), (3, 1), (2, 4)])
@pytest.mark.parametrize("rescale", [True, False])
def test_predictor_and_corrector_leave_a_constant_prediction_and_its_noise_alone(orders, rescale):
    """Mean and noise level are those of the forward process in every step: scale^2 sigma_s^2 + noise^2 = sigma_t^2."""
    nodes = fs.log_snr(VP, 8, to_zero=True)
    stages = SASolver(*orders, tau=0.7, rescale=rescale).plan(VP, nodes)
    for stage, (s, t) in zip(stages, itertools.pairwise(nodes), strict=True):
        assert stage.move.scale * s.alpha + sum(stage.move.weights) == pytest.approx(t.alpha, rel=1e-13)
        assert stage.move.scale**2 * s.sigma**2 + stage.noise**2 == pytest.approx(t.sigma**2, rel=1e-13)
        if stage.correct is not None:
            assert stage.correct.scale == 1
            assert sum(stage.correct.weights) == pytest.approx(0, abs=1e-14)
    assert [stage.correct is not None for stage in stages] == [False] + [True] * 6 + [False]


@pytest.mark.parametrize("field", ["data", "noise"])
def test_the_corrector_takes_the_noise_of_the_predictor(field):
    """x_t by Adams-Moulton from the corrected state before, with the z that the driver added after the predictor."""
    solver = SASolver(3, 4, tau=0.8, field=field, final_order=2)
    nodes = fs.log_snr(VP, 7, to_zero=False)
    stages = solver.plan(VP, nodes)
    denoiser = problem().denoiser(VP)
    x, state, accepted, past, z = noise(), None, noise(), [], None
    for i, stage in enumerate(stages):
        denoised = denoiser(x, stage.node.time)
        eps = (x - stage.node.alpha * denoised) / stage.node.sigma
        past.insert(0, denoised if field == "data" else eps)
        if i:
            correct = solver._row(nodes, i - 1, min(4, i + 1, 10 - i), corrector=True)
            accepted = correct.apply(accepted, past) + stages[i - 1].noise * z
        want = stage.move.apply(accepted, past)
        x, state = stage(state, x, denoised)
        torch.testing.assert_close(x, want, rtol=1e-12, atol=1e-12)
        z = torch.randn_like(x)
        x = x + stage.noise * z


def test_budgets_are_met_by_leaving_out_second_calls():
    nodes = fs.log_snr(VP, 5, to_zero=False)
    solver = SASolver(mode="PECE")
    for nfe in range(5, 10):
        times = [stage.node.time for stage in solver.plan(VP, nodes, nfe)]
        twice = [node for node in nodes if times.count(node.time) == 2]
        assert twice == list(nodes[1 : nfe - 4])
    with pytest.raises(ValueError, match="a grid of 5 steps costs this solver 5 to 9 calls; got nfe=10"):
        solver.plan(VP, nodes, 10)
    last = SASolver(correct_last=True)
    assert [stage.node for stage in last.plan(VP, nodes)] == list(nodes)
    assert last.plan(VP, nodes, 5) == SASolver().plan(VP, nodes)


def test_noise_is_drawn_inside_the_window_and_never_in_the_last_step():
    nodes = fs.time_uniform(VP, 10, to_zero=False)
    stages = SASolver(tau=0.5, window=(0.15, 0.75), final_order=2).plan(VP, nodes)
    assert [stage.noise > 0 for stage in stages] == [0.15 <= node.time <= 0.75 for node in nodes[1:]]
    outside = SASolver(tau=0.0, final_order=2).plan(VP, nodes)
    assert [a.move == b.move for a, b in itertools.zip_longest(stages, outside)] == [s.noise == 0 for s in stages]
    everywhere = SASolver(tau=0.5).plan(VP, nodes)
    assert [stage.noise > 0 for stage in everywhere] == [True] * 9 + [False]


def test_noise_cannot_be_drawn_while_it_rises():
    nodes = fs.log_snr(VP, 6, to_zero=False)[::-1]
    with pytest.raises(ValueError, match="to invert, take tau=0"):
        SASolver().plan(VP, nodes)
    assert len(SASolver(tau=0.0).plan(VP, nodes)) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"predictor_order": 0}, "predictor_order must be one of 1, 2, 3, 4; got 0"),
        ({"corrector_order": 5}, "corrector_order must be one of"),
        ({"mode": "PC"}, "mode must be one of 'PEC', 'PECE'; got 'PC'"),
        ({"field": "velocity"}, "field must be one of"),
        ({"final_order": 0}, "final_order must be one of"),
        ({"tau": -1.0}, "tau must be finite and at least 0; got tau=-1.0"),
        ({"window": (1.0, 0.5)}, "window must be .low, high. in the schedule's clock"),
        ({"corrector_order": 0, "mode": "PECE"}, "need a corrector; got corrector_order=0"),
        ({"corrector_order": 0, "correct_last": True}, "need a corrector"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SASolver(**options)


def test_the_noise_field_cannot_leave_alpha_zero():
    nodes = fs.time_uniform(fs.Flow(), 4)
    with pytest.raises(ValueError, match='use field="data"'):
        SASolver(field="noise").plan(fs.Flow(), nodes)
    first = SASolver().plan(fs.Flow(), nodes)[0]
    assert first.move == (0.0, (nodes[1].alpha,))  # pure noise is forgotten, and drawn again
    assert first.noise == nodes[1].sigma
