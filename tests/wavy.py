"""Made-up statistics for the solvers that need some, and a run with them."""

import numpy as np
import torch

import fewstep as fs
from benchmarks.problems import gaussian


def wavy(shape=(2, 4, 4), points=41):
    """Statistics of size 1 that differ from element to element and bend with lam."""
    lam = torch.linspace(-8, 8, points, dtype=torch.float64)
    phase = torch.linspace(0, 3, max(1, int(np.prod(shape))), dtype=torch.float64).reshape(shape)
    at = lam.reshape(-1, *[1] * len(shape)) + phase
    return fs.EMS(lam, (at / 2).sigmoid() * 1.1, at.sin() / 3, at.cos() / 5)


def run(solver, schedule, steps=7):
    problem = gaussian()
    nodes = fs.log_snr(schedule, steps, to_zero=False)
    x = torch.randn(2, *problem.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return fs.integrate(problem.denoiser(schedule), x * nodes[0].sigma, nodes, solver=solver, schedule=schedule)
