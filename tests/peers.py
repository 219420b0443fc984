"""Comparison with schedulers of diffusers and samplers of k-diffusion."""

import pytest
import torch

import fewstep as fs


def assert_equals_scheduler(scheduler, solver, steps=10):
    """The run equals a loop around scheduler.step, whose tables are float32: 1e-7 a step, and some cancellation."""
    scheduler.set_timesteps(steps)
    times = scheduler.timesteps.tolist()
    nodes = []
    for time, ratio in zip([*times, 0.0], scheduler.sigmas.double().tolist(), strict=True):
        alpha = 1 / (1 + ratio**2) ** 0.5
        nodes.append(fs.Node(float(time), alpha, ratio * alpha))
    table = {float(node.time): node for node in nodes[:-1]}

    def denoiser(x, t):
        return x / (1 + x * x + 4 * table[t].nsr ** 2) + 0.25

    x = start = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    for time in times:
        node = table[float(time)]
        noise = (x - node.alpha * denoiser(x, float(time))) / node.sigma
        x = scheduler.step(noise, time, x, return_dict=False)[0]
    schedule = fs.Discrete(scheduler.alphas_cumprod.double().tolist())
    got = fs.integrate(denoiser, start, nodes, solver=solver, schedule=schedule)
    torch.testing.assert_close(got, x.double(), rtol=0, atol=2e-5)


def assert_equals_steps(step, solver, nodes):
    """A run of a solver that draws noise equals a loop around `step(noise_prediction, time, x, z)`, with the same z.

    Tables of the peers are float32, as in `assert_equals_scheduler`.
    """
    table = {node.time: node for node in nodes[:-1]}

    def denoiser(x, t):
        return x / (1 + x * x + 4 * table[t].nsr ** 2) + 0.25

    start = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    draws = [torch.randn_like(start) for _ in table]
    want = start
    for node, z in zip(nodes, draws, strict=False):
        noise = (want - node.alpha * denoiser(want, node.time)) / node.sigma
        want = step(noise, node.time, want, z)
    got, state = start, None
    for stage, z in zip(solver.plan(fs.EDM(), nodes), draws, strict=True):
        got, state = stage(state, got, denoiser(got, stage.node.time))
        got = got + stage.noise * z
    torch.testing.assert_close(got, want.double(), rtol=0, atol=2e-5)


def k_diffusion():
    """k-diffusion's samplers, where they can be imported."""
    return pytest.importorskip("k_diffusion.sampling", reason="needs k-diffusion", exc_type=ImportError)


class Rational:
    """A denoiser as k-diffusion calls it, with the sigmas of a batch, and as we do."""

    def __call__(self, x, sigma):
        return self.denoiser(x, sigma[0])

    def denoiser(self, x, sigma):
        return x / (1 + x * x + sigma**2) + 0.25


def rational_model(steps=7):
    """The model, a start, and the same nodes for both sides."""
    nodes = fs.karras(fs.EDM(), steps, to_zero=True)
    start = 80 * torch.randn(2, 3, 4, 4, dtype=torch.float64)
    return Rational(), start, nodes, torch.tensor([node.sigma for node in nodes], dtype=torch.float64)
