import math
from itertools import pairwise

import pytest
import torch

import fewstep as fs
from peers import rational_model


def by_hand(model, x, sigmas, gamma):
    """As smalldiffusion's samples with gam=gamma and mu=0, and ComfyUI's gradient_estimation, have it."""
    before = None
    for s, t in pairwise(sigmas):
        d = (x - model(x, s[None])) / s
        mean = d if before is None or t == 0 else gamma * d + (1 - gamma) * before
        x, before = x + (t - s) * mean, d
    return x


@pytest.mark.parametrize("gamma", [1.0, 1.5, 2.0, 2.6])
def test_equals_the_rule_of_smalldiffusion_and_comfyui(gamma):
    model, start, nodes, sigmas = rational_model()
    got = fs.integrate(model.denoiser, start, nodes, solver=fs.GradientEstimation(gamma), schedule=fs.EDM())
    torch.testing.assert_close(got, by_hand(model, start, sigmas, gamma), rtol=0, atol=1e-11)


@pytest.mark.parametrize("gamma", [1.0, 2.0])
def test_equals_smalldiffusion(gamma):
    """A live run of smalldiffusion; it has no closing step of its own, so that the grid stops at sigma_min."""
    diffusion = pytest.importorskip("smalldiffusion.diffusion", reason="needs smalldiffusion", exc_type=ImportError)
    model, start, nodes, _ = rational_model()
    nodes = nodes[:-1]

    class Network(torch.nn.Module):
        def predict_eps_cfg(self, x, sigma, cond, scale):
            return (x - model.denoiser(x, sigma)) / sigma

        def rand_input(self, batch):
            return torch.zeros_like(start)

    class Here:
        device = "cpu"

    sigmas = torch.tensor([node.sigma for node in nodes], dtype=torch.float64)
    *_, theirs = diffusion.samples(Network(), sigmas, gam=gamma, xt=start.clone(), accelerator=Here())
    got = fs.integrate(model.denoiser, start, nodes, solver=fs.GradientEstimation(gamma), schedule=fs.EDM())
    torch.testing.assert_close(got, theirs, rtol=0, atol=1e-11)


def test_gamma_1_is_ddim_and_3_halves_is_ipndm_2():
    nodes = fs.karras(fs.EDM(), 7, to_zero=True)
    for gamma, order in ((1.0, 1), (1.5, 2)):
        for ours, theirs in zip(
            fs.GradientEstimation(gamma).plan(fs.EDM(), nodes), fs.IPNDM(order).plan(fs.EDM(), nodes), strict=True
        ):
            assert ours.move.scale == theirs.move.scale
            assert ours.move.weights[: len(theirs.move.weights)] == theirs.move.weights


@pytest.mark.parametrize("gamma", [0.9, math.inf, math.nan])
def test_refuses(gamma):
    with pytest.raises(ValueError, match=f"gamma must be finite and at least 1; got gamma={gamma!r}"):
        fs.GradientEstimation(gamma)
