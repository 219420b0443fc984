import math
from itertools import pairwise

import pytest
import torch

import fewstep as fs
from fewstep.solvers.core.base import euler_row
from golden import assert_matches, entries, sd_table, zju_nodes
from peers import assert_equals_steps

EULER = [k for k in entries("zju_diff_solvers") if k.startswith("euler") and "afs" not in k]
VP = fs.VPLinear()


@pytest.mark.parametrize("key", EULER)
def test_equals_euler_of_diff_sampler(key):
    assert_matches("zju_diff_solvers", key, fs.DDIM(), fs.EDM(), zju_nodes(key))


def test_one_call_to_zero_is_the_denoised():
    denoised = torch.randn(2, 3, 4, 4)
    got = fs.sample(
        lambda x, t: denoised, torch.randn(2, 3, 4, 4), solver=fs.DDIM(), grid=[80.0, 0.0], schedule=fs.EDM()
    )
    assert torch.equal(got, denoised)


def leading_nodes(scheduler, steps, end):
    """The nodes of a run of diffusers' DDIM or DDPM, which ends at alpha^2 = `end`."""
    scheduler.set_timesteps(steps)
    levels = [*scheduler.alphas_cumprod[scheduler.timesteps].double().tolist(), end]
    times = [*scheduler.timesteps.tolist(), -1]
    return [fs.Node(float(t), math.sqrt(a), math.sqrt(1 - a)) for t, a in zip(times, levels, strict=True)]


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("to_one", [True, False])
def test_equals_ddim_of_diffusers(eta, to_one):
    diffusers = pytest.importorskip("diffusers", reason="needs the extra diffusers")
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=to_one, steps_offset=1
    )
    nodes = leading_nodes(scheduler, 10, float(scheduler.final_alpha_cumprod))

    def step(noise, time, x, z):
        return scheduler.step(noise, int(time), x, eta=eta, variance_noise=z, return_dict=False)[0]

    assert_equals_steps(step, fs.DDIM(eta), nodes)


def test_equals_ddpm_of_diffusers(monkeypatch):
    diffusers = pytest.importorskip("diffusers", reason="needs the extra diffusers")
    scheduler = diffusers.DDPMScheduler(beta_schedule="scaled_linear", clip_sample=False, variance_type="fixed_small")
    given = {}
    monkeypatch.setattr(diffusers.schedulers.scheduling_ddpm, "randn_tensor", lambda *_, **__: given["z"])

    def step(noise, time, x, z):
        given["z"] = z
        return scheduler.step(noise, int(time), x, return_dict=False)[0]

    assert_equals_steps(step, fs.DDIM(eta=1.0), leading_nodes(scheduler, 10, 1.0))


def test_eta_0_is_ddim():
    nodes = fs.log_snr(VP, 5, to_zero=True)
    assert [(stage.move, stage.noise) for stage in fs.DDIM().plan(VP, nodes)] == [
        (euler_row("data", s, t), 0.0) for s, t in pairwise(nodes)
    ]
    for stage, limit in zip(fs.DDIM(1e-9).plan(VP, nodes), fs.DDIM().plan(VP, nodes), strict=True):
        assert stage.move.scale == pytest.approx(limit.move.scale, rel=1e-12)
        assert stage.move.weights == pytest.approx(limit.move.weights, rel=1e-12)


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("schedule", [VP, fs.EDM(), fs.Flow(), sd_table()], ids=repr)
def test_noise_is_replaced_and_not_added(eta, schedule):
    """With a known image, x = alpha c + sigma z keeps its variance and its mean; eta = 1 is its exact posterior."""
    nodes = fs.uniform(schedule, 8)
    for (s, t), stage in zip(pairwise(nodes), fs.DDIM(eta).plan(schedule, nodes), strict=True):
        scale, (weight,) = stage.move
        assert (scale * s.sigma) ** 2 + stage.noise**2 == pytest.approx(t.sigma**2, rel=1e-12)
        assert scale * s.alpha + weight == pytest.approx(t.alpha, rel=1e-12)
        if eta == 1:  # Cov(x_t, x_s) / Var(x_s) of the forward process, given the image
            assert scale * s.sigma**2 == pytest.approx(s.alpha / t.alpha * t.sigma**2, rel=1e-12)


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_eta_is_a_share(eta):
    with pytest.raises(ValueError, match=r"eta must lie in \[0, 1\]; got eta="):
        fs.DDIM(eta)


def test_noise_cannot_be_drawn_on_the_way_up():
    nodes = fs.log_snr(VP, 5, to_zero=False)[::-1]
    fs.DDIM().plan(VP, nodes)
    with pytest.raises(ValueError, match=r"eta=0.5 needs nodes of falling noise; to invert, use eta=0"):
        fs.DDIM(0.5).plan(VP, nodes)
