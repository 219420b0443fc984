import math

import pytest
import torch

import fewstep as fs


def azula(model, x, sigmas, order, std=1.0):
    """azula's REABSampler with alpha = 1 and its slip mended: sigma_s, the step's end, in both square roots."""
    x, sigmas = x / std, sigmas / std
    u = sigmas.log()
    past = []
    for i in range(len(sigmas) - 1):
        t, s = sigmas[i], sigmas[i + 1]
        a = t**2 / (1 + t**2)
        b = a.sqrt()
        past = [*past, ((1 - a) * x - model(x * std, (t * std)[None]) / std) / b][-order:]
        n = len(past)
        k = torch.arange(n)[:, None]
        fine = torch.linspace(0, 1, 4097, dtype=torch.float64) * (u[i + 1] - u[i]) + u[i]
        # About u_i, where theirs has powers of u itself, and Simpson's rule for their 256 trapezia.
        mass = fine.exp() / (1 + (2 * fine).exp())
        simpson = torch.ones(4097, dtype=torch.float64)
        simpson[1:-1:2], simpson[2:-1:2] = 4, 2
        moments = (mass * (fine - u[i]) ** k * simpson).sum(-1) * (u[i + 1] - u[i]) / 4096 / 3
        vandermonde = (u[i + 1 - n : i + 1] - u[i]) ** k
        weights = torch.linalg.solve(vandermonde, moments)
        root = (1 + s**2).sqrt()
        x = root / (1 + t**2).sqrt() * x + root * sum(w * f for w, f in zip(weights, past, strict=True))
    return x * std


@pytest.mark.parametrize("std", [1.0, 0.5])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_equals_azula_but_for_a_slip_in_it(order, std):
    def model(x, sigma):
        return x / (1 + x * x + sigma**2) + 0.25

    nodes = fs.log_snr(fs.EDM(), 9, to_zero=False)
    sigmas = torch.tensor([node.sigma for node in nodes], dtype=torch.float64)
    start = 80 * torch.randn(2, 3, 4, 4, dtype=torch.float64)
    got = fs.integrate(model, start, nodes, solver=fs.REAB(order, std), schedule=fs.EDM())
    torch.testing.assert_close(got, azula(model, start, sigmas, order, std), rtol=0, atol=1e-9)


@pytest.mark.parametrize("schedule", [fs.EDM(), fs.VPLinear(), fs.Flow()], ids=["edm", "vp", "flow"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_is_exact_on_the_gaussian_that_it_subtracts(order, schedule):
    std, x = 0.7, torch.randn(2, 3, 4, 4, dtype=torch.float64)

    def denoiser(x, time):
        _, alpha, sigma = schedule.node(time)
        return x * (alpha * std**2 / (alpha**2 * std**2 + sigma**2))

    nodes = fs.log_snr(schedule, 3, to_zero=False)
    s, t = nodes[0], nodes[-1]
    got = fs.integrate(denoiser, x * s.sigma, nodes, solver=fs.REAB(order, std), schedule=schedule)
    gain = math.hypot(t.alpha * std, t.sigma) / math.hypot(s.alpha * std, s.sigma)
    torch.testing.assert_close(got, x * s.sigma * gain, rtol=0, atol=1e-12 * s.sigma)


def test_the_spread_is_the_schedules_if_not_given():
    nodes = fs.focused(fs.EDM(data_std=2.0), 5)
    assert fs.REAB().plan(fs.EDM(data_std=2.0), nodes) == fs.REAB(data_std=2.0).plan(fs.EDM(), nodes)


@pytest.mark.parametrize("data_std", [0.0, -1.0, math.inf])
def test_refuses(data_std):
    with pytest.raises(ValueError, match="data_std must be None or positive and finite"):
        fs.REAB(data_std=data_std)
