"""Measured orders of convergence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.grid import GridFunction, log_snr
from fewstep.sampling import integrate
from fewstep.schedule import Node, Schedule
from fewstep.solvers import Solver, Stage
from fewstep.solvers.core.base import renoise

from .problems import GaussianMixture, gaussian
from .problems.base import solved

__all__ = ["STEPS", "convergence", "covariance_convergence", "fitted_order", "reference", "spread_error"]

# Past the first transients, and far from rounding: UniPC-3 has an error of 1e-9 at 640 steps.
STEPS = (80, 160, 320, 640)
REFERENCE_STEPS = 10_000
BATCH = 4
FAR = 12.0  # half log-SNR taken for infinite: a noise, or a signal, of 6e-6


def convergence(
    solver: Solver,
    schedule: Schedule,
    problem: GaussianMixture,
    steps: Sequence[int] = STEPS,
    grid: GridFunction | None = None,
) -> list[float]:
    """The RMSE against the ODE's solution after each number of steps, from the same noise, in float64.

    The grid runs from t_max to t_min, uniformly in log-SNR if not given. The solution is exact for a Gaussian
    and that of UniPC-3 in 10,000 steps for a mixture.
    """
    grid = log_snr(to_zero=False) if grid is None else grid
    denoiser = problem.denoiser(schedule)
    ends = grid(schedule, steps[0])
    x = start(problem, ends[0])
    exact = reference(problem, schedule, x, ends[0], ends[-1])
    errors = []
    for n in steps:
        got = integrate(denoiser, x, grid(schedule, n), solver=solver, schedule=schedule)
        errors.append((got - exact).square().mean().sqrt().item())
    return errors


def covariance_convergence(solver: Solver, schedule: Schedule, steps: Sequence[int] = STEPS) -> list[float]:
    """`spread_error` after each number of steps."""
    grids = [log_snr(schedule, n, to_zero=False) for n in steps]
    return [spread_error(solver.plan(schedule, nodes), nodes) for nodes in grids]


def spread_error(stages: Sequence[Stage], nodes: Sequence[Node]) -> float:
    """The RMS error of the standard deviations that the plan of a stochastic solver gives a Gaussian.

    Without sampling error: on a centred Gaussian of known principal axes a solver is linear, so that a run carries the
    start and every step's unit noise apart, each in its own row of the batch; the variances of the rows add up.
    """
    variances = gaussian().variances[0]
    s, t = nodes[0], nodes[-1]
    x = torch.zeros(2 + len(stages), len(variances), dtype=torch.float64)
    scale, added = renoise(s, stages[0].node)
    x[0] = scale * (s.alpha**2 * variances + s.sigma**2).sqrt()
    x[1] = added
    state: Any = None
    for row, stage in enumerate(stages, start=2):
        _, alpha, sigma = stage.node
        denoised = x * (alpha * variances / (alpha**2 * variances + sigma**2))
        x, state = stage(state, x, denoised)
        x = x.clone()  # the stage may have kept it
        x[row] += stage.noise
    spread = x.square().sum(0).sqrt()
    return float((spread - (t.alpha**2 * variances + t.sigma**2).sqrt()).square().mean().sqrt())


def fitted_order(steps: Sequence[int], errors: Sequence[float]) -> float:
    """Minus the slope of log error over log steps."""
    return -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])


def start(problem: GaussianMixture, node: Node) -> Tensor:
    noise = torch.randn(BATCH, *problem.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return noise * node.sigma


def reference(problem: GaussianMixture, schedule: Schedule, x: Tensor, s: Node, t: Node) -> Tensor:
    """Where the ODE carries x from s to t."""
    if len(problem.weights) == 1:
        return problem.solution(x, s, t)
    return solved(problem.denoiser(schedule), schedule, x, s, t, REFERENCE_STEPS, FAR)
