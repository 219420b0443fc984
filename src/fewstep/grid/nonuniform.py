"""DM-NonUniform: the steps that minimise a bound of the error of a third-order multistep method.

No data and no model enter. With lam_0 < ... < lam_N, h_s = lam_(s+1) - lam_s, and the orders 1, 2, 3, ..., 3, 2, 1 of
DPM-Solver++ or UniPC, step s weighs the prediction at node s - j by an integral of its Lagrange polynomial l_j,

    J_(s,j) = integral of e^lam l_j(lam) from lam_s to lam_(s+1),     j = 0, 1, 2

and so multiplies the error of that prediction, taken to be e_n = sigma_n^power / alpha_n (variance preserving):

    objective = sum over n of |sum over s - j = n of J_(s,j)| e_n
                + sum over s in {0, 1, 2, N - 1} of sqrt(sum over j of (J_(s,j) e_(s-j))^2)

where the first sum leaves out the steps of the second. Xue et al., Accelerating Diffusion Sampling with Optimized Time
Steps (2024), section 3, and its code, `power` 2 there. The paper's other choice is 1, for models of pixels.

The objective has kinks, at which the code's trust-region search stops early: its nodes depend on the sixth digit of
its start. Here |c| is sqrt(c^2 + mu^2) with mu falling from 1 to 1e-6, and steps are a softmax, so that each problem is
smooth and free: a quasi-Newton search finds the same optimum from every start tried, lower than all of the code's.
"""

from __future__ import annotations

import functools
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..schedule import Node, Schedule
from .base import Grid, between, closes, lam_ends, need_scipy

__all__ = ["dm_nonuniform", "objective"]

ALONE = 3  # so many first steps, where errors hardly cancel, enter the objective one by one
SMOOTHING = (1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 1e-4, 1e-6)  # the objective at the optimum is 5 to 50
FLOOR = 0.02  # of the mean step: the optimum would let some vanish beyond 30 steps
SEARCH = {"maxiter": 300, "maxfun": 600, "maxcor": 30}


@Grid
def dm_nonuniform(
    schedule: Schedule, steps: int, *, power: Literal[1, 2] = 2, to_zero: bool | None = None
) -> tuple[Node, ...]:
    """The steps of DM-NonUniform, searched for once and kept. Needs scipy; a fraction of a second up to 30 steps."""
    if power not in (1, 2):
        raise ValueError(f"power must be 1 or 2; got {power!r}")
    start, end = ends = lam_ends(schedule)
    n = steps - closes(schedule.data_std, end, to_zero)
    lams = _optimum(start.lam, end.lam, n, power) if n > 1 else ()
    return between(schedule, steps, to_zero, ends, lambda _: map(schedule.time_at, lams))


def objective(lams: NDArray[np.inexact], power: int = 2, mu: float = 0.0) -> NDArray[np.inexact]:
    """The objective of grids (..., N + 1) in half log-SNR, noisy to clean; `mu` smooths its kinks."""
    n = lams.shape[-1] - 1
    h, e = np.diff(lams), np.exp(lams)
    error = np.sqrt(1 + e**-2) * (1 + e**2) ** (-power / 2)
    # Integrals of e^x, x e^x and x^2 e^x from 0 to h.
    h0 = np.expm1(h)
    h1 = np.exp(h) * h - h0
    h2 = np.exp(h) * h * h - 2 * h1
    weights = np.zeros((*h.shape, 3), lams.dtype)
    weights[..., 0] = h0
    s = np.array(sorted({1, n - 2}) if n > 2 else [], int)
    a = h[..., s - 1]
    weights[..., s, 0] += h1[..., s] / a
    weights[..., s, 1] = -h1[..., s] / a
    s = np.arange(2, n - 2)
    a, b = h[..., s - 1], h[..., s - 2]
    weights[..., s, 0] += (h2[..., s] + (2 * a + b) * h1[..., s]) / (a * (a + b))
    weights[..., s, 1] = -(h2[..., s] + (a + b) * h1[..., s]) / (a * b)
    weights[..., s, 2] = (h2[..., s] + a * h1[..., s]) / (b * (a + b))
    weights *= e[..., :-1, None]
    for j in range(3):
        weights[..., j:, j] *= error[..., : n - j]
    s = np.arange(n)
    alone = (s < ALONE) | (s == n - 1)
    single = np.sqrt((weights[..., alone, :] ** 2).sum(-1) + mu**2).sum(-1)
    weights[..., alone, :] = 0
    total = weights[..., 0]
    for j in (1, 2):
        total[..., : n - j] += weights[..., j:, j]
    return np.asarray(single + np.sqrt(total**2 + mu**2).sum(-1))


@functools.lru_cache(maxsize=256)
def _optimum(noisy: float, clean: float, n: int, power: int) -> tuple[float, ...]:
    """The n - 1 inner half log-SNRs."""
    minimize = need_scipy("optimize", "dm_nonuniform").minimize
    tiny = 1e-30  # an imaginary step of a real function: the gradient to the last digit
    shifts = np.vstack([1j * tiny * np.eye(n), np.zeros(n)])
    z = np.zeros(n)
    for mu in SMOOTHING:

        def value_and_gradient(z: NDArray[np.float64], mu: float = mu) -> tuple[float, NDArray[np.float64]]:
            values = objective(_nodes(z + shifts, noisy, clean), power, mu)
            return float(values[-1].real), values[:-1].imag / tiny

        z = minimize(value_and_gradient, z, jac=True, method="L-BFGS-B", options=SEARCH).x
    return tuple(map(float, _nodes(z, noisy, clean)[1:-1]))


def _nodes(z: NDArray[np.inexact], noisy: float, clean: float) -> NDArray[np.inexact]:
    """Half log-SNRs whose steps are the softmax of z, above the floor."""
    share = np.exp(z - z.real.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)
    share = FLOOR / z.shape[-1] + (1 - FLOOR) * share
    inner = noisy + (clean - noisy) * np.cumsum(share[..., :-1], -1)
    end = np.ones((*z.shape[:-1], 1))
    return np.concatenate([noisy * end, inner, clean * end], -1)
