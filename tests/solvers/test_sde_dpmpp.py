import math
from itertools import pairwise

import mpmath
import pytest
import torch

import fewstep as fs
from golden import sd_table
from peers import assert_equals_steps, k_diffusion, rational_model

VP = fs.VPLinear()
NODES = fs.log_snr(VP, 6, to_zero=True)


def sde_scheduler(order, variant):
    diffusers = pytest.importorskip("diffusers", reason="needs the extra diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler(
        solver_order=order,
        solver_type="midpoint" if variant == "midpoint" else "heun",
        beta_schedule="scaled_linear",
        algorithm_type="sde-dpmsolver++",
    )
    scheduler.set_timesteps(10)
    ratios = scheduler.sigmas.double().tolist()
    nodes = []
    for time, ratio in zip([*scheduler.timesteps.tolist(), 0.0], ratios, strict=True):
        alpha = 1 / math.hypot(1, ratio)
        nodes.append(fs.Node(float(time), alpha, ratio * alpha))
    return scheduler, nodes


@pytest.mark.parametrize(("order", "variant"), [(1, "midpoint"), (2, "midpoint"), (2, "taylor")])
def test_equals_diffusers(order, variant):
    scheduler, nodes = sde_scheduler(order, variant)

    def step(noise, time, x, z):
        return scheduler.step(noise, int(time), x, variance_noise=z, return_dict=False)[0]

    assert_equals_steps(step, fs.SDEDPMSolverPP(order, variant, final_order=2), nodes)


def test_order_3_of_diffusers_differs_by_its_sign():
    """By alpha_t D_2 = alpha_t (D_0 - D_1) / (r_0 + r_1): -1/2 where the expansion has +1/2."""
    scheduler, nodes = sde_scheduler(3, "midpoint")
    scheduler._step_index = 3
    p2, p1, s, t = nodes[1:5]
    x, z, m0, m1, m2 = (torch.randn(2, 3, dtype=torch.float64) for _ in range(5))
    theirs = scheduler.multistep_dpm_solver_third_order_update([m2, m1, m0], sample=x, noise=z)
    stage = fs.SDEDPMSolverPP(3, final_order=3).plan(VP, nodes)[3]
    ours = stage.move.apply(x, (m0, m1, m2)) + stage.noise * z
    h = t.lam - s.lam
    r0, r1 = (s.lam - p1.lam) / h, (p1.lam - p2.lam) / h
    slip = t.alpha * ((m0 - m1) / r0 - (m1 - m2) / r1) / (r0 + r1)
    torch.testing.assert_close(ours - slip, theirs.double(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("variant", ["midpoint", "taylor"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_eta_0_is_the_ode_solver(order, variant):
    for nodes in (NODES, NODES[::-1][1:]):
        plan = fs.SDEDPMSolverPP(order, variant, eta=0.0).plan(VP, nodes)
        assert plan == fs.DPMSolverPP(order, variant).plan(VP, nodes)
    near = fs.SDEDPMSolverPP(order, variant, eta=1e-9, final_order=2).plan(VP, NODES)
    for stage, limit in zip(near, fs.DPMSolverPP(order, variant, final_order=2).plan(VP, NODES), strict=True):
        assert stage.move.scale == pytest.approx(limit.move.scale, rel=1e-7)
        assert stage.move.weights == pytest.approx(limit.move.weights, rel=1e-7)
        assert stage.noise < 1e-3


def test_order_1_is_ddpm():
    for mine, ddpm in zip(fs.SDEDPMSolverPP(1).plan(VP, NODES), fs.DDIM(eta=1.0).plan(VP, NODES), strict=True):
        assert mine.node == ddpm.node
        assert mine.move.scale == pytest.approx(ddpm.move.scale, rel=1e-12, abs=1e-300)
        assert mine.move.weights == pytest.approx(ddpm.move.weights, rel=1e-12)
        assert mine.noise == pytest.approx(ddpm.noise, rel=1e-12)


@pytest.mark.parametrize("eta", [0.3, 1.0, 2.0])
def test_rows_are_the_exponential_integrals(eta):
    """Of a prediction that is a polynomial in lam: of degree 1 for "taylor", of degree 0 for "midpoint"."""
    s, t = NODES[2:4]
    h = t.lam - s.lam

    def integral(power):
        decay = 1 + eta
        return t.alpha * float(mpmath.quad(lambda u: decay * h * mpmath.exp(-decay * h * (1 - u)) * u**power, [0, 1]))

    back = (NODES[1].lam - s.lam) / h
    for variant, powers in (("taylor", (0, 1)), ("midpoint", (0,))):
        stage = fs.SDEDPMSolverPP(2, variant, eta).plan(VP, NODES)[2]
        assert stage.move.scale == pytest.approx(t.sigma / s.sigma * math.exp(-eta * h), rel=1e-13)
        for power in powers:
            got = stage.move.weights[0] * 0.0**power + stage.move.weights[1] * back**power
            assert got == pytest.approx(integral(power), rel=1e-11)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("eta", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("schedule", [VP, fs.EDM(), fs.Flow(), sd_table()], ids=repr)
def test_noise_is_replaced_and_not_added(order, eta, schedule):
    """With a known image, x = alpha c + sigma z keeps its variance, and the weights of c add up."""
    nodes = fs.uniform(schedule, 8)
    stages = fs.SDEDPMSolverPP(order, eta=eta).plan(schedule, nodes)
    for (s, t), stage in zip(pairwise(nodes), stages, strict=True):
        scale, weights = stage.move
        assert (scale * s.sigma) ** 2 + stage.noise**2 == pytest.approx(t.sigma**2, rel=1e-12)
        assert scale * s.alpha + sum(weights) == pytest.approx(t.alpha, rel=1e-12)


def test_the_step_to_zero_is_deterministic():
    last = fs.SDEDPMSolverPP(3).plan(VP, NODES)[-1]
    assert (last.move.scale, last.move.weights, last.noise) == (0.0, (1.0,), 0.0)


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize(
    ("name", "solver", "options"),
    [
        ("sample_dpmpp_2m_sde", fs.SDEDPMSolverPP(2, "midpoint", final_order=2), {"solver_type": "midpoint"}),
        ("sample_dpmpp_2m_sde", fs.SDEDPMSolverPP(2, "taylor", final_order=2), {"solver_type": "heun"}),
        ("sample_dpmpp_3m_sde", fs.SDEDPMSolverPP(3, "taylor", final_order=3), {}),
    ],
)
def test_equals_k_diffusion(name, solver, options, eta):
    sampling = k_diffusion()
    model, start, nodes, sigmas = rational_model()
    draws = [torch.randn_like(start) for _ in nodes]
    queue = iter(draws)
    want = getattr(sampling, name)(
        model, start, sigmas, disable=True, eta=eta, noise_sampler=lambda *_: next(queue), **options
    )
    solver = fs.SDEDPMSolverPP(solver.order, solver.variant, eta, solver.final_order)
    x, state = start, None
    for stage, z in zip(solver.plan(fs.EDM(), nodes), draws, strict=False):
        x, state = stage(state, x, model.denoiser(x, stage.node.time))
        x = x + stage.noise * z
    assert (x - want).abs().max() < 1e-12 * sigmas[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 4}, "order must be one of 1, 2, 3; got 4"),
        ({"variant": "heun"}, "variant must be one of 'midpoint', 'taylor'; got 'heun'"),
        ({"final_order": 0}, "final_order must be one of None, 1, 2, 3; got 0"),
        ({"eta": -0.1}, "eta must be finite and at least 0; got eta=-0.1"),
        ({"eta": math.nan}, "eta must be finite and at least 0; got eta=nan"),
    ],
)
def test_wrong_options_are_refused_at_the_door(options, message):
    with pytest.raises(ValueError, match=message):
        fs.SDEDPMSolverPP(**options)


def test_noise_cannot_be_drawn_on_the_way_up():
    with pytest.raises(ValueError, match=r"eta=1.0 needs nodes of falling noise; to invert, use eta=0"):
        fs.SDEDPMSolverPP().plan(VP, NODES[-2::-1])
