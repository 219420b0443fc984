import math
from itertools import pairwise

import pytest
import torch

import fewstep as fs

VP = fs.VPLinear()
NODES = fs.log_snr(VP, 4, to_zero=True)


def by_hand(denoiser, x, nodes, order, r, variant, eta, draws):
    """seeds_2, seeds_3 and exp_heun of ComfyUI; `draws` are each step's unit noises, in their order."""
    for (s, t), z in zip(pairwise(nodes), draws, strict=True):
        m = denoiser(x, s.time)
        if t.sigma == 0:
            return m
        h = t.lam - s.lam
        fractions = (r, 1.0) if order == 2 else (1 / 3, 2 / 3, 1.0)
        points = [VP.node(VP.time_at(s.lam + f * h)) for f in fractions[:-1]] + [t]
        called, reached, noise, before = [(0.0, m)], x, torch.zeros_like(x), 0.0
        for f, node, unit in zip(fractions, points, z, strict=True):
            k = f * h * (1 + eta)
            one = -math.expm1(-k)  # f h phi_1
            noise = noise * math.exp(-(f - before) * h * eta)
            noise = noise + math.sqrt(-math.expm1(-2 * (f - before) * h * eta)) * unit
            c, latest = called[-1]
            two = (math.expm1(-k) + k) / k if c else 0.0
            if c and order == 2 and variant == "midpoint":
                two = one / 2  # of order 2 at the step's end
            move = (one - two * f / c) * m + two * f / c * latest if c else one * m
            reached = node.sigma / s.sigma * math.exp(-f * h * eta) * x + node.alpha * move + node.sigma * noise
            if f < 1 or (order == 2 and r == 1 and len(called) == 1):
                called.append((f, denoiser(reached, node.time)))
            before = f
        x = reached
    return x


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    ("order", "r", "variant"),
    [(2, 0.5, "midpoint"), (2, 0.5, "taylor"), (2, 0.3, "midpoint"), (2, 1.0, "taylor"), (3, 0.5, "midpoint")],
)
def test_equals_the_published_steps_with_the_same_noise(order, r, variant, eta):
    """The published steps carry a step's noise along; ours start from the point before, which holds it."""

    def denoiser(x, time):
        return x / (1 + x * x + 4 * VP.node(time).nsr ** 2) + 0.25

    start = torch.randn(2, 3, dtype=torch.float64)
    draws = [torch.randn(order, 2, 3, dtype=torch.float64) for _ in range(4)]
    want = by_hand(denoiser, start, NODES, order, r, variant, eta, draws)
    solver = fs.SEEDS(order, r, variant, eta)
    units = iter([z for draw in draws for z in draw])
    got, state = start, None
    for stage in solver.plan(VP, NODES):
        got, state = stage(state, got, denoiser(got, stage.node.time))
        unit = next(units)
        if stage.noise:
            got = got + stage.noise * unit
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", [2, 3])
def test_without_noise_it_is_dpm_solver_pp_in_single_steps(order):
    def denoiser(x, time):
        return x / (1 + x * x + 4 * VP.node(time).nsr ** 2) + 0.25

    x = torch.randn(2, 3, dtype=torch.float64)
    for nodes in (NODES, NODES[::-1][1:]):
        ours, theirs = (
            fs.integrate(denoiser, x, nodes, solver=solver, schedule=VP)
            for solver in (fs.SEEDS(order, eta=0.0), fs.DPMSolverPP(order, final_order=3, method="singlestep"))
        )
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


def test_refuses():
    for r in (0, 1e-9):
        with pytest.raises(ValueError, match=rf"r must lie in \[0.01, 1\].*got r={r}"):
            fs.SEEDS(r=r)
    with pytest.raises(ValueError, match="r and variant are options of order 2"):
        fs.SEEDS(order=3, r=1.0)
    with pytest.raises(ValueError, match="needs nodes of falling noise; to invert, use eta=0"):
        fs.SEEDS().plan(VP, NODES[::-1][1:])
