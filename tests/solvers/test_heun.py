import math
from itertools import pairwise

import pytest
import torch

import fewstep as fs
from fewstep.solvers.core.base import renoise
from golden import GRIDS, assert_matches, entries, zju_nodes
from peers import k_diffusion, rational_model

EDM = [k for k in entries("dpm_solver_edm") if "__heun__" in k]
ZJU = [k for k in entries("zju_diff_solvers") if k.startswith("heun")]


@pytest.mark.parametrize("key", EDM)
def test_equals_the_edm_code(key):
    _, _, grid, budget = key.split("__")
    nfe = int(budget.removeprefix("steps_arg"))
    odd = bool(nfe % 2)
    nodes = GRIDS[grid](fs.EDM(), nfe // 2 + odd, to_zero=odd)
    assert_matches("dpm_solver_edm", key, fs.Heun(), fs.EDM(), nodes)


@pytest.mark.parametrize("key", ZJU)
def test_equals_diff_sampler(key):
    assert_matches("zju_diff_solvers", key, fs.Heun(), fs.EDM(), zju_nodes(key))


def test_an_odd_budget_takes_the_last_noisy_step_at_first_order():
    nodes = fs.karras(fs.EDM(), 4, to_zero=False)
    assert [s.hold for s in fs.Heun().plan(fs.EDM(), nodes)] == [True, False] * 4
    assert [s.hold for s in fs.Heun().plan(fs.EDM(), nodes, 7)] == [True, False] * 3 + [False]
    for nfe in (6, 9):
        with pytest.raises(ValueError, match=f"4 steps costs Heun 8 calls, or one less .* got nfe={nfe}"):
            fs.Heun().plan(fs.EDM(), nodes, nfe)


def test_a_flow_needs_the_velocity_field():
    nodes = fs.time_uniform(fs.Flow(), 4)
    with pytest.raises(ValueError, match='field="velocity"'):
        fs.Heun().plan(fs.Flow(), nodes)
    assert len(fs.Heun(field="velocity").plan(fs.Flow(), nodes)) == 7


CHURN = {"s_churn": 4.0, "s_tmin": 0.1, "s_tmax": 20.0, "s_noise": 1.007}


def churned(denoiser, x, nodes, draws, s_churn, s_tmin, s_tmax, s_noise):
    """Algorithm 2 of Karras et al. (2022), line by line, for alpha = 1."""
    sigmas = [node.sigma for node in nodes]
    for t, t_next in pairwise(sigmas):
        gamma = min(s_churn / (len(sigmas) - 1), math.sqrt(2) - 1) if s_tmin <= t <= s_tmax else 0.0
        t_hat = t + gamma * t
        if gamma:
            x = x + math.sqrt(t_hat**2 - t**2) * s_noise * next(draws)
        d = (x - denoiser(x, t_hat)) / t_hat
        euler = x + (t_next - t_hat) * d
        if t_next:
            euler = x + (t_next - t_hat) * (d + (euler - denoiser(euler, t_next)) / t_next) / 2
        x = euler
    return x


def driven(solver, schedule, nodes, x, denoiser, draws):
    """The driver's loop, with given noise."""
    stages, state = solver.plan(schedule, nodes), None
    if stages[0].node != nodes[0]:
        scale, added = renoise(nodes[0], stages[0].node)
        x = scale * x + added * next(draws)
    for stage in stages:
        x, state = stage(state, x, denoiser(x, stage.node.time))
        if stage.noise:
            x = x + stage.noise * next(draws)
    return x


@pytest.mark.parametrize("to_zero", [True, False])
@pytest.mark.parametrize("options", [CHURN, {**CHURN, "s_churn": 1.0}, {**CHURN, "s_tmax": math.inf, "s_noise": 1.0}])
def test_churn_is_algorithm_2(options, to_zero):
    model, x, _, _ = rational_model()
    nodes = fs.karras(fs.EDM(), 7, to_zero=to_zero)
    draws = [torch.randn_like(x) for _ in nodes]
    want = churned(model.denoiser, x, nodes, iter(draws), **options)
    got = driven(fs.Heun(**options), fs.EDM(), nodes, x, model.denoiser, iter(draws))
    # Roundings of the noisiest state, which first steps of the noise field amplify.
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12 * nodes[0].sigma)


def test_churn_is_the_same_run_on_every_schedule_in_x_over_alpha():
    """With the noise field, and a denoiser that sees x / alpha and sigma / alpha."""
    model, x, _, _ = rational_model()
    edm = fs.EDM(0.01, 50.0)
    vp = fs.VPLinear()
    nodes = fs.karras(edm, 6, to_zero=True)
    images = [vp.node(vp.time_at(node.lam)) for node in nodes[:-1]] + [vp.node(0.0)]
    draws = [torch.randn_like(x) for _ in nodes]
    want = driven(fs.Heun(**CHURN), edm, nodes, x, model.denoiser, iter(draws))
    got = driven(
        fs.Heun(**CHURN),
        vp,
        images,
        x * images[0].alpha,
        lambda x, t: model.denoiser(x / vp.node(t).alpha, vp.node(t).nsr),
        iter(draws),
    )
    torch.testing.assert_close(got, want, rtol=0, atol=1e-11 * nodes[0].sigma)


@pytest.mark.parametrize("field", ["noise", "velocity"])
def test_churn_leads_from_level_to_level(field):
    """A known image c: x = alpha c + sigma z has the mean and the variance of the level of the next call."""
    schedule, c = (fs.Flow(), 0.3) if field == "velocity" else (fs.VPLinear(), 0.3)
    nodes = fs.karras(schedule, 8, to_zero=False)
    stages = fs.Heun(field, 40.0, 0.05, 50.0).plan(schedule, nodes)
    mean, spread = nodes[0].alpha * c, nodes[0].sigma
    for middle, after in zip(stages[1::2], [*stages[2::2], None], strict=True):
        scale, weights = middle.move
        mean = scale * mean + sum(weights) * (0.0 if field == "noise" else -c)
        spread = math.hypot(scale * spread + sum(weights), middle.noise)
        there = after.node if after else nodes[-1]
        size = 1 / nodes[0].alpha  # of x / alpha, which the noise field subtracts from
        assert mean == pytest.approx(there.alpha * c, rel=1e-13 * size)
        assert spread == pytest.approx(there.sigma, rel=1e-11 * size)
    assert sum(stage.noise > 0 for stage in stages) == sum(0.05 <= node.nsr <= 50 for node in nodes[1:-1])


def test_equals_k_diffusion():
    """With churn at every step, since it draws at every one."""
    sampling = k_diffusion()
    model, start, nodes, sigmas = rational_model()
    torch.manual_seed(5)
    want = sampling.sample_heun(model, start, sigmas, disable=True, s_churn=2.0)
    torch.manual_seed(5)
    draws = (torch.randn_like(start) for _ in nodes)
    got = driven(fs.Heun(s_churn=2.0), fs.EDM(), nodes, start, model.denoiser, draws)
    assert (got - want).abs().max() < 1e-12 * sigmas[0]


def test_no_churn_is_the_plain_method():
    nodes = fs.karras(fs.EDM(), 5)
    assert fs.Heun(s_churn=40, s_tmin=100.0).plan(fs.EDM(), nodes) == fs.Heun().plan(fs.EDM(), nodes)


def test_pure_noise_is_not_churned():
    nodes = fs.time_uniform(fs.Flow(), 4)
    stages = fs.Heun("velocity", s_churn=1.0).plan(fs.Flow(), nodes)
    assert stages[0].node == nodes[0]
    assert stages[2].node.nsr == pytest.approx(1.25 * nodes[1].nsr, rel=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"field": "data"}, "field must be one of 'noise', 'velocity'; got 'data'"),
        ({"s_churn": -1.0}, "s_churn must be finite and at least 0; got s_churn=-1.0"),
        ({"s_noise": math.inf}, "s_noise must be finite and at least 0; got s_noise=inf"),
        ({"s_tmin": 2.0, "s_tmax": 1.0}, "churn needs 0 <= s_tmin <= s_tmax; got s_tmin=2.0, s_tmax=1.0"),
    ],
)
def test_wrong_options_are_refused_at_the_door(options, message):
    with pytest.raises(ValueError, match=message):
        fs.Heun(**options)


def test_churn_that_cannot_be_made_says_why():
    nodes = fs.karras(fs.EDM(), 5)
    with pytest.raises(ValueError, match=r"s_noise=1.007 cannot scale the noise before the first call.* = 80, or"):
        fs.Heun(s_churn=10, s_noise=1.007).plan(fs.EDM(), nodes)
    with pytest.raises(ValueError, match=r"s_churn=10 needs nodes of falling noise; to invert, use s_churn=0"):
        fs.Heun(s_churn=10).plan(fs.EDM(), nodes[::-1])
    table = fs.Discrete([0.999 * 0.99**i for i in range(1000)])
    with pytest.raises(ValueError, match=r"churn at time 999.0 leaves the schedule: keep s_tmax below"):
        fs.Heun(s_churn=10).plan(table, fs.karras(table, 5))
