"""Comparison with schedulers of diffusers."""

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
    got = fs.integrate(denoiser, start, nodes, solver=solver)
    torch.testing.assert_close(got, x.double(), rtol=0, atol=2e-5)
