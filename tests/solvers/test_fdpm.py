from itertools import pairwise

import pytest
import torch

import fewstep as fs
from benchmarks.problems import gaussian
from peers import rational_model


@pytest.mark.parametrize("to_zero", [True, False])
def test_equals_the_definition(to_zero):
    model, start, nodes, _ = rational_model()
    nodes = nodes if to_zero else nodes[:-1]

    def ddim(x, m, s, t):
        return t.sigma / s.sigma * x + (1 - t.sigma / s.sigma) * m

    x, m = start, model.denoiser(start, nodes[0].sigma)
    for s, t in pairwise(nodes[:-1]):
        m = model.denoiser(ddim(x, m, s, t), t.sigma)
        x = ddim(x, m, s, t)
    want = ddim(x, m, *nodes[-2:])
    got = fs.integrate(model.denoiser, start, nodes, solver=fs.FDPMSolver(), schedule=fs.EDM())
    torch.testing.assert_close(got, want, rtol=0, atol=1e-11)


def test_its_error_is_ddims_with_the_other_sign():
    """To first order in the step: their mean is nearer to the solution than either, and gains an order."""
    problem, schedule = gaussian(), fs.VPLinear()
    x = torch.randn(4, *problem.shape, dtype=torch.float64)
    for steps in (80, 160):
        nodes = fs.log_snr(schedule, steps, to_zero=False)
        exact = problem.solution(x, nodes[0], nodes[-1])
        ddim, forward = (
            fs.integrate(problem.denoiser(schedule), x, nodes, solver=solver, schedule=schedule) - exact
            for solver in (fs.DDIM(), fs.FDPMSolver())
        )
        cosine = (ddim * forward).sum() / (ddim.norm() * forward.norm())
        assert cosine < -0.98
        # Both errors are of size h, their sum of size h^2.
        assert ((ddim + forward) / 2).norm() < 12 / steps * ddim.norm()
