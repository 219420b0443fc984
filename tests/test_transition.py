"""What steps leave is known where the answer is linear in x: on a Gaussian."""

import math

import numpy as np
import pytest
import torch

import fewstep as fs
from fewstep.sampling import plan
from fewstep.solvers.core.base import euler_row
from fewstep.transition import evaluations, single_steps

SHAPE, STD, SEEDS = (4, 4, 4), 0.5, range(8)
SCHEDULES = [fs.EDM(), fs.VPLinear(), fs.Flow()]


def gaussian(schedule):
    """E[x_0 | x] of N(0, STD^2)."""

    def denoised(x, t):
        _, alpha, sigma = schedule.node(t)
        return x * (alpha * STD**2 / (alpha**2 * STD**2 + sigma**2))

    return fs.as_denoiser(denoised, "sample", schedule)


def measured(schedule, denoiser=None, **rest):
    return fs.transitions(denoiser or gaussian(schedule), shape=SHAPE, seeds=SEEDS, dtype=torch.float64, **rest)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_ddims_steps_on_a_gaussian_are_factors(schedule):
    """x = c unit noise, each of whose steps is a factor; the exact path's is the ratio of the marginals' spreads."""
    found = measured(schedule, nfe=6)
    nodes, _ = plan(schedule, fs.EVODiff(), nfe=6)
    square = float(fs.unit_noise(SEEDS, SHAPE, dtype=torch.float64).square().mean())
    spread = [math.hypot(node.alpha * STD, node.sigma) for node in nodes]
    answers = [node.alpha * STD**2 / width**2 for node, width in zip(nodes, spread, strict=True)]
    c = exact = nodes[0].sigma
    states, paths, off = [], [], []
    end = exact * spread[6] / spread[0]  # where the path ends: on all ranges here with nodes[6]
    for i in range(6):
        states.append((c - exact) ** 2 / nodes[i].alpha ** 2 * square if nodes[i].alpha else 0.0)
        paths.append((answers[i] * exact - end) ** 2 * square)
        off.append((answers[i] * c - end) ** 2 * square)
        row = euler_row("data", nodes[i], nodes[i + 1])
        c = c * (row.scale + row.weights[0] * answers[i])
        exact = nodes[0].sigma * spread[i + 1] / spread[0]
    # The converged path is of 42 calls: its own error is below 1e-3 of the spread.
    leeway = 1e-3 * STD**2
    np.testing.assert_allclose(found.state["ddim"], states, rtol=0.02, atol=leeway)
    np.testing.assert_allclose(found.path, paths, rtol=0.02, atol=leeway)
    np.testing.assert_allclose(found.answer["ddim"], off, rtol=0.02, atol=leeway)
    assert found.ends["ddim"] == pytest.approx(abs(c - end) * math.sqrt(square), rel=0.02, abs=1e-3)


def test_the_default_leaves_less_than_ddim_and_2m():
    found = measured(fs.EDM(), nfe=8)
    assert found.ends["evodiff"] < found.ends["dpmpp-2m"] < found.ends["ddim"]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_eta_and_zeta_lie_in_their_intervals(schedule):
    """Both are sigmoids, and the code halves eta; the first two calls correct nothing."""
    found = measured(schedule, nfe=8)
    for name, rule in found.rules.items():
        assert np.isnan(rule.eta[:2]).all()
        assert np.isnan(rule.zeta[:2]).all()
        least, most = (0.5, 1) if name == "evodiff-paper" else (0.25, 0.5)
        assert ((least <= rule.eta[2:7]) & (rule.eta[2:7] <= most)).all(), (name, rule.eta)
        assert ((rule.zeta[2:7] > 0) & (rule.zeta[2:7] <= 1)).all()
    assert ((found.longest >= 2) & (found.longest <= 4)).all()  # 1 lies in all intervals


def paper_bends(step, state, x, m, half_eta, zeta):
    """Lines 7 and 9 of Algorithm 1, of a predicted state."""
    bent = half_eta * (m - state.m) + (1 - half_eta) * state.slope
    return x + step.gain * (zeta * bent - state.slope)


def published_bends(step, state, x, m, eta, zeta):
    """The correction of the authors' code, in the terms of `published`."""
    d1 = state.pending.d1
    share = ((m * state.m).sum((2, 3), keepdim=True) / (state.m**2).sum((2, 3), keepdim=True)).clamp(-2, 2)
    d2 = m - (step.base + step.w * share) * state.m
    gain = step.a / (2 * step.r) * state.pending.spread
    bent = (1 - eta) * step.r * d2 - eta / step.r * d1
    return x - step.alpha * gain * d1 + step.alpha * step.a * bent / (2 * zeta)


@pytest.mark.parametrize(("mode", "bends"), [("paper", paper_bends), ("published", published_bends)])
def test_the_weights_told_are_those_of_the_step(mode, bends):
    """A step corrected by them, by the printed formula, and a stage that then corrects nothing, are the stage."""
    _, stages = plan(fs.EDM(), fs.EVODiff(mode=mode), nfe=6)
    denoiser = gaussian(fs.EDM())
    x, state, checked = 80 * torch.randn(3, *SHAPE, dtype=torch.float64), None, 0
    for stage in stages:
        m = denoiser(x, stage.node.time) + 0.01 * torch.randn_like(x)  # else all differences are collinear
        told = stage.weights(state, x.clone(), m.clone())
        after, new = stage(state, x.clone(), m.clone())
        assert (told is None) == (stage.correct is None)
        if told is not None:
            eta, zeta = told
            by_hand = bends(stage.correct, state, x, m, eta / 2 if mode == "paper" else eta, zeta)
            bare = by_hand if stage.move is None else stage._replace(correct=None)(state, by_hand, m.clone())[0]
            torch.testing.assert_close(after, bare, rtol=1e-9, atol=1e-9)
            checked += 1
        x, state = after, new
    assert checked == 4


def test_calls_are_counted_and_told():
    calls, told = [], []
    known = gaussian(fs.EDM())

    def counted(x, t):
        calls.append(len(x))
        return known(x, t)

    fs.transitions(
        counted, fs.EDM(), shape=SHAPE, seeds=range(3), nfe=8, batch=2, progress=lambda *done: told.append(done)
    )
    assert told == [(2 * evaluations(8), 3 * evaluations(8)), (3 * evaluations(8), 3 * evaluations(8))]
    assert sum(calls) <= 3 * evaluations(8)


@pytest.mark.parametrize("solver", [fs.Heun(), fs.SDEDPMSolverPP(2)], ids=str)
def test_other_solvers_are_refused(solver):
    with pytest.raises(ValueError, match=r"^other (does not call once at each node|draws noise)"):
        measured(fs.EDM(), solvers={"other": solver})


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_single_steps_are_told_over_calls(schedule):
    """In batches as alone: the RMSE of each to 42 calls of the default."""
    known, noise = gaussian(schedule), fs.unit_noise(SEEDS, SHAPE, dtype=torch.float64)
    found = fs.over_calls(known, shape=SHAPE, seeds=SEEDS, dtype=torch.float64, calls=(5, 8), batch=3)
    assert list(found) == ["FD", "RE, low", "RE, high"]
    x0 = fs.sample(known, noise, nfe=42)
    for name, solver in single_steps(schedule).items():
        ends = [fs.sample(known, noise, nfe=nfe, solver=solver) for nfe in (5, 8)]
        want = [float((end - x0).square().mean().sqrt()) for end in ends]
        np.testing.assert_allclose(found[name], want, rtol=1e-9)


def test_models_may_work_in_place_and_answer_in_one_buffer():
    known, buffer = gaussian(fs.EDM()), torch.empty(len(SEEDS), *SHAPE, dtype=torch.float64)

    def careless(x, t):
        buffer.copy_(known(x, t))
        x.fill_(7.0)
        return buffer

    found, careful = measured(fs.EDM(), fs.as_denoiser(careless, "sample", fs.EDM()), nfe=4), measured(fs.EDM(), nfe=4)
    assert found.ends == careful.ends
    for part in ("state", "answer"):
        for name, values in getattr(careful, part).items():
            assert np.array_equal(getattr(found, part)[name], values)
    for name, rule in careful.rules.items():
        np.testing.assert_array_equal(found.rules[name].zeta, rule.zeta)


def test_the_path_is_nearer_to_the_solution_than_a_run_of_many_calls():
    assert measured(fs.EDM(), nfe=50).ends["evodiff"] > 0


def test_a_model_that_fails_in_a_run_is_told():
    known, calls = gaussian(fs.EDM()), iter(range(1000))

    def failing(x, t):
        return known(x, t) * (math.nan if next(calls) > 42 else 1)

    with pytest.raises(fs.DenoiserError, match="NaN"):
        fs.transitions(failing, fs.EDM(), shape=SHAPE, seeds=range(2), nfe=7)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"seeds": []}, "seeds must be 1 or more, and batch; got 0 seeds"),
        ({"batch": 0}, "batch=0"),
        ({"solvers": {"x": "ddim"}}, "solvers must be solvers by name"),
        ({"solvers": {"evodiff-paper": fs.DDIM()}}, "solvers cannot be named evodiff-paper"),
    ],
)
def test_wrong_arguments_are_told(options, part):
    with pytest.raises((TypeError, ValueError), match=part):
        fs.transitions(gaussian(fs.EDM()), shape=SHAPE, **options)
    if "evodiff-paper" not in part:
        with pytest.raises((TypeError, ValueError), match=part):
            fs.over_calls(gaussian(fs.EDM()), shape=SHAPE, **options)


def test_calls_are_taken_from_any_iterable_and_one_is_needed():
    options = {"shape": SHAPE, "seeds": range(2), "solvers": {"ddim": fs.DDIM()}}
    assert len(fs.over_calls(gaussian(fs.EDM()), calls=iter((3, 4)), **options)["ddim"]) == 2
    with pytest.raises(ValueError, match="calls must name at least one"):
        fs.over_calls(gaussian(fs.EDM()), calls=(), **options)


def test_a_denoiser_without_schedule_needs_one():
    with pytest.raises(TypeError, match="schedule is needed"):
        fs.transitions(lambda x, t: x, shape=SHAPE)
