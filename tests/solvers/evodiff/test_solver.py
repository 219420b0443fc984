import math

import pytest
import torch

import fewstep as fs
from benchmarks.orders import convergence
from benchmarks.problems import gaussian
from fewstep.sampling import plan
from fewstep.solvers.core.base import euler_row
from golden import GRIDS, arrays, assert_matches, entries, noise, problem, sd_table

KEYS = [k for k in entries("evodiff") if not k.startswith("float32")]
MODES = pytest.mark.parametrize("mode", ["published", "paper"])


@pytest.mark.parametrize("key", KEYS)
def test_published_equals_the_authors_code(key):
    facts = entries("evodiff")[key]
    schedule = fs.EDM(facts["sigma_min"], facts["sigma_max"])
    closing = bool(facts["denoise_to_zero"])
    nodes = GRIDS[facts["grid"]](schedule, facts["steps"] + closing, to_zero=closing)
    solver = fs.EVODiff(mode="published", lower_order_final=bool(facts["lower_order_final"]))
    assert_matches("evodiff", key, solver, schedule, nodes)


@pytest.mark.parametrize("trace", ["trace__nfe8__edm__dtz1", "trace__nfe25__logSNR__dtz0"])
def test_published_calls_the_model_where_the_authors_code_does(trace):
    _, nfe, grid, flag = trace.split("__")
    nodes = GRIDS[grid](fs.EDM(), int(nfe[3:]), to_zero=flag == "dtz1")
    z = arrays("evodiff")
    calls = []

    def denoiser(x, t):
        calls.append((t, x))
        return problem().denoiser(fs.EDM())(x, t)

    fs.integrate(denoiser, noise() * 80, nodes, solver=fs.EVODiff(mode="published"), schedule=fs.EDM())
    assert [t for t, _ in calls] == pytest.approx(z[f"{trace}__model_sigma"].ravel().tolist(), rel=1e-12)
    for (_, x), want in zip(calls, z[f"{trace}__model_x"], strict=True):
        # 1e-10: ten times the tolerance of the runs' ends; states are larger at first.
        torch.testing.assert_close(x, torch.tensor(want), rtol=1e-12, atol=1e-10)


@MODES
@pytest.mark.parametrize("schedule", [fs.VPLinear(), fs.Flow()], ids=["vp", "flow"])
def test_a_run_in_x_over_alpha_is_the_same_on_every_schedule(mode, schedule):
    """Both rules depend on sigma / alpha alone; only published EDM's last step has a rule of its own."""
    ratios = [8.0, 3.0, 1.2, 0.5, 0.2, 0.07, 0.02, 0.0]
    ve = [fs.Node(r, 1.0, r) for r in ratios]
    nodes = [*(schedule.node(schedule.time_at(-math.log(r))) for r in ratios[:-1])]
    nodes.append(schedule.node(schedule.t_clean))
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64) * 8
    solver = fs.EVODiff(mode=mode, lower_order_final=False)

    def smooth(x, n):
        return x / (1 + x * x + n * n) + 0.25

    there = fs.integrate(lambda x, t: smooth(x, t), x, ve, solver=solver, schedule=fs.EDM())

    def scaled(x, t):
        node = schedule.node(t)
        return smooth(x / node.alpha, node.nsr)

    here = fs.integrate(scaled, x * nodes[0].alpha, nodes, solver=solver, schedule=schedule)
    torch.testing.assert_close(here, there, rtol=1e-11, atol=1e-12)


@MODES
def test_an_edit_between_calls_survives_the_correction(mode):
    """The correction is a difference: what is added to x between two calls is still there after the next one."""
    nodes = fs.log_snr(fs.EDM(), 8, to_zero=False)
    stages = fs.EVODiff(mode=mode).plan(fs.EDM(), nodes)
    x, state = torch.randn(2, 3, 4, 4, dtype=torch.float64) * 80, None
    answers = [torch.randn(2, 3, 4, 4, dtype=torch.float64) for _ in stages]
    for stage, answer in zip(stages[:4], answers, strict=False):
        x, state = stage(state, x, answer)
    edit = torch.randn_like(x)
    plain, _ = stages[4](state, x, answers[4])
    edited, _ = stages[4](state, x + edit, answers[4])
    scale = stages[4].move.scale
    if mode == "published":
        torch.testing.assert_close(edited - plain, scale * edit, rtol=1e-9, atol=1e-12)
    else:  # Its zeta is measured on x itself, so that an edit also moves the weight.
        moved = (edited - plain - scale * edit).abs().max()
        assert moved < 0.2 * edit.abs().max()


@pytest.mark.parametrize(
    ("fixed_eta", "fixed_zeta"), [(None, None), (None, 1.0), (0.5, None), (0.0, None), (1.0, None), (0.25, 0.75)]
)
def test_paper_is_algorithm_1_line_by_line(fixed_eta, fixed_zeta):
    """A transcription of the printed lines, in f(x) = x / sigma and the print's own symbols, and its ablations."""
    nodes = fs.log_snr(fs.EDM(), 6, to_zero=True)
    model = problem().denoiser(fs.EDM())
    x = noise() * 80

    def vec(u):
        return u.flatten(1)

    def inner(u, v):
        return (vec(u) * vec(v)).sum(1).reshape(-1, 1, 1, 1)

    d = model(x, nodes[0].time)
    previous = None
    for i in range(len(nodes) - 2):
        s, t = nodes[i], nodes[i + 1]
        h = 1 / t.nsr - 1 / s.nsr
        f = x / s.sigma + h * d
        if previous is None:
            x = t.sigma * f
            previous, d = d, model(x, t.time)
            continue
        r = (s.lam - nodes[i - 1].lam) / (t.lam - s.lam)
        b_l = (d - previous) / (r * h)
        predicted = f + h**2 / 2 * b_l
        d_t = model(t.sigma * predicted, t.time)
        if i < len(nodes) - 3:
            b_s = (d_t - d) / h
            f_tilde = b_l - b_s
            eta = torch.sigmoid((-inner(f_tilde, b_l) / inner(f_tilde, f_tilde)).abs())
            if fixed_eta is not None:
                eta = 2 * fixed_eta
            b = eta / 2 * b_s + (1 - eta / 2) * b_l
            p = s.sigma * (predicted - h * d_t + h**2 / 2 * b_s) + s.sigma * predicted - s.sigma * h**2 / 2 * b_s
            p_tilde = p - s.sigma * h * d
            difference = d_t - d
            zeta = -inner(difference, p_tilde) / (s.sigma * h * inner(difference, difference))
            zeta = torch.sigmoid(zeta.abs() - 0.5) if fixed_zeta is None else fixed_zeta
            x = t.sigma * (f + h**2 / 2 * zeta * b)
        else:
            x = t.sigma * predicted
        previous, d = d, d_t
    solver = fs.EVODiff(mode="paper", eta=fixed_eta, zeta=fixed_zeta)
    got = fs.integrate(model, noise() * 80, nodes, solver=solver, schedule=fs.EDM())
    torch.testing.assert_close(got, d, rtol=0, atol=1e-11)


def test_a_large_negative_shift_is_zeta_1_and_a_large_positive_one_is_ddim():
    nodes = fs.log_snr(fs.EDM(), 6, to_zero=True)
    model = problem().denoiser(fs.EDM())

    def run(solver):
        return fs.integrate(model, noise() * 80, nodes, solver=solver, schedule=fs.EDM())

    one = run(fs.EVODiff("paper", zeta=1.0))
    torch.testing.assert_close(run(fs.EVODiff("paper", shift=-50.0)), one, rtol=0, atol=1e-12)
    none = run(fs.EVODiff("paper", zeta=0.0))
    torch.testing.assert_close(run(fs.EVODiff("paper", shift=1e9)), none, rtol=0, atol=1e-12)
    assert (one - none).abs().max() > 1e-3


def test_the_shift_belongs_to_the_refined_zeta():
    for options in ({}, {"mode": "paper", "zeta": 0.5}):
        with pytest.raises(ValueError, match='shift is part of the refined zeta of mode="paper"'):
            fs.EVODiff(**options, shift=0.25)
    with pytest.raises(ValueError, match="shift must be finite; got inf"):
        fs.EVODiff("paper", shift=math.inf)


def test_only_the_paper_has_numbers_to_fix():
    for name in ("eta", "zeta"):
        with pytest.raises(ValueError, match=f'{name} can be fixed in mode="paper" only; got {name}=0.5'):
            fs.EVODiff(**{name: 0.5})
        for value in (-0.1, 1.1, math.nan):
            with pytest.raises(ValueError, match=rf"{name} must be None or a number in \[0, 1\]; got {value}"):
                fs.EVODiff("paper", **{name: value})


def test_channels_are_measured_apart_wherever_they_are():
    x = torch.randn(2, 6, 5, dtype=torch.float64)

    def model(x, t):
        return x / (1 + x * x + t * t) + 0.25

    packed = fs.sample(model, x.mT, nfe=8, solver=fs.EVODiff("published", channel_dim=-1), schedule=fs.EDM())
    plain = fs.sample(model, x, nfe=8, solver=fs.EVODiff("published", channel_dim=1), schedule=fs.EDM())
    torch.testing.assert_close(packed.mT, plain, rtol=1e-12, atol=1e-12)
    whole = fs.sample(model, x, nfe=8, solver=fs.EVODiff("published", channel_dim=None), schedule=fs.EDM())
    assert (whole - plain).abs().max() > 1e-3
    with pytest.raises(ValueError, match=r"channel_dim=3 is not a dimension of a tensor of shape \(2, 6, 5\)"):
        fs.sample(model, x, nfe=8, solver=fs.EVODiff("published", channel_dim=3), schedule=fs.EDM())


@MODES
def test_noise_must_fall(mode):
    nodes = fs.log_snr(fs.EDM(), 4, to_zero=False)[::-1]
    with pytest.raises(ValueError, match="EVODiff needs nodes of falling noise"):
        fs.EVODiff(mode=mode).plan(fs.EDM(), nodes)


@MODES
def test_a_stage_entered_without_its_history_says_so(mode):
    stages = fs.EVODiff(mode=mode).plan(fs.EDM(), fs.log_snr(fs.EDM(), 6, to_zero=False))
    x = torch.randn(1, 2, 4, 4)
    with pytest.raises(ValueError, match="plan again from its node"):
        stages[3](None, x, x)


@MODES
def test_correcting_the_last_step_costs_one_call_where_the_run_stops_above_zero(mode):
    solver = fs.EVODiff(mode=mode, lower_order_final=False)
    assert len(solver.plan(fs.EDM(), fs.log_snr(fs.EDM(), 8, to_zero=False))) == 9
    assert len(solver.plan(fs.EDM(), fs.log_snr(fs.EDM(), 8, to_zero=True))) == 8
    assert len(solver.plan(fs.EDM(), fs.log_snr(fs.EDM(), 8, to_zero=False), 8)) == 8


@pytest.mark.parametrize("schedule", [fs.VPLinear(), fs.Flow(), sd_table()], ids=["vp", "flow", "discrete"])
def test_the_published_last_step_is_ddim_where_alpha_varies(schedule):
    nodes, stages = plan(schedule, fs.EVODiff(mode="published"), nfe=8)
    last = len(nodes) - 1 - (nodes[-1].sigma == 0)
    assert stages[last - 1].predict is None
    assert stages[last - 1].move == euler_row("data", nodes[last - 1], nodes[last])


def test_nothing_is_measured_against_a_prediction_at_pure_noise():
    """From alpha = 0 a step has no finite length in log-SNR: the next step is of first order again."""
    nodes, stages = plan(fs.Flow(), fs.EVODiff(mode="published"), nfe=6)
    assert nodes[0].alpha == 0
    assert [stage.predict is not None for stage in stages] == [False, False, True, True, False, False]


def test_the_printed_last_step_is_kept_away_from_noise():
    """It multiplies by 1 - sqrt(sigma_t sigma_s), which is negative in a run that stops at sigma = 1."""
    nodes = [fs.EDM().node(sigma) for sigma in (80.0, 20.0, 5.0, 1.0)]
    stages = fs.EVODiff("published").plan(fs.EDM(), nodes)
    assert stages[-1].move == euler_row("data", nodes[-2], nodes[-1])
    printed = fs.EVODiff("published").plan(fs.EDM(), fs.log_snr(fs.EDM(), 8))[-1].move
    assert len(printed.weights) == 2  # it takes a difference, which DDIM does not


def test_the_rule_of_long_runs_begins_beyond_20_steps():
    for steps, long_run in ((20, False), (21, True)):
        stages = fs.EVODiff("published").plan(fs.EDM(), fs.log_snr(fs.EDM(), steps, to_zero=False))
        assert stages[1].predict.long_run is long_run


def test_collinear_differences_take_the_limit_of_the_projection():
    """With D_2 = D_1 / r^2 exactly, P is 0 / 0; a perturbation, however small, makes it the clip."""
    stages = fs.EVODiff("published").plan(fs.EDM(), fs.log_snr(fs.EDM(), 8, to_zero=False))
    m = torch.randn(1, 1, 4, 4, dtype=torch.float64)

    def run(wiggle):
        x, state = m * 80, None
        for stage in stages[:3]:
            x, state = stage(state, x, m)
        _, _, correct, *_ = stages[3]
        # The answer that makes v vanish: m_t = rho m_0 + D_1 / r^2.
        share = torch.ones(1, 1, 1, 1, dtype=torch.float64)
        d1 = state.pending.d1
        answer = (correct.base + correct.w * share) * m + d1 * correct.r**-2
        return stages[3](state, x, answer + wiggle * torch.linspace(-1, 2, 16, dtype=torch.float64).reshape(m.shape))[0]

    assert (run(1e-11) - run(1e-12)).abs().max() < 1e-9
    assert (run(1e-12) - run(0.0)).abs().max() < 1e-9


def test_the_printed_last_step_leaves_a_floor_and_correcting_instead_does_not():
    """Four times the steps: an error of about sigma_min stays as it is, one of first order falls to a quarter."""
    schedule = fs.EDM(sigma_min=0.05)
    printed = convergence(fs.EVODiff("published"), schedule, gaussian(), steps=(160, 640))
    corrected = convergence(fs.EVODiff("published", lower_order_final=False), schedule, gaussian(), steps=(160, 640))
    assert all(0.05 / 4 < error < 0.05 for error in printed)
    assert printed[0] / printed[1] == pytest.approx(1, abs=0.1)
    assert corrected[0] / corrected[1] == pytest.approx(4, rel=0.15)
