"""DEIS: Adams-Bashforth in the noise field, exact for predictions that are polynomials of a chosen variable u.

    x_t = (scale_t / scale_s) x + (level_t - scale_t / scale_s level_s) sum_k w_k e_k,   k = 0 ... order - 1
    w_k = int l_k(u(lam)) dc / (c_t - c_s) over the step,   c = level / scale   (in noise prediction sigma / alpha)

with l_k the Lagrange polynomials of u_0, u_1, ..., the values of u at the nodes of the last predictions e_k.

    variant       u
    "tab"         the clock (`core.deis_clock`): tAB-DEIS
    "rhoab"       c: rho-AB-DEIS, in closed form (`core.adams`); also iPNDM_v as it was meant
    "logrhoab"    log(sigma / alpha) = -lam: DEIS in diffusers; also UniP with exact weights ("vary")

The paper counts degrees: its AB3 is our order 4. Its rho-RK methods are Runge-Kutta in sigma / alpha; `Heun` is the
one of second order.

Quadrature. In lam all of the integrand is smooth: dc is e^-lam, or a logistic density, and the singularities of u(lam)
nearest to the real line are those of log(1 + e^(-2 lam)), pi / 2 away. Gauss-Legendre with n points is then off by
exp(-2 n asinh(pi / |h|)) on a step of length h, which the n below make 1e-16. The clock of `Discrete` is a polyline and
is integrated piece by piece. (The published codes sum over 10^4 points, which leaves 3e-5.)

Zhang & Chen, Fast Sampling of Diffusion Models with Exponential Integrator (2023).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from ..grid import Grid
from ..schedule import Node, Schedule
from .core.adams import adams_orders, variable_step
from .core.base import LinearStage, choice, euler_row, spend
from .core.deis_clock import Array, clock, clock_quadratic, corners
from .core.last_steps import last_order

NEPERS = 18.4  # half of -log(1e-16)


@dataclass(frozen=True)
class DEIS:
    """tAB-DEIS ("tab"), rho-AB-DEIS ("rhoab") or log-rho-AB-DEIS ("logrhoab") of order 1 to 4.

    `field="velocity"` is for flows, which start at alpha = 0; there "tab" and "rhoab" are the same. `final_order` is
    the highest order of the step into the last noisy node, one more before it, and so on: 4 in diff-sampler, 1 in
    diffusers below 15 steps; None finds it by `core.last_steps`.

    Cost: 1 call per step. Order: docs/numerics.md.
    """

    order: Literal[1, 2, 3, 4] = 4
    variant: Literal["tab", "rhoab", "logrhoab"] = "tab"
    field: Literal["noise", "velocity"] = "noise"
    final_order: int | None = None
    grid: ClassVar[Grid] = clock_quadratic
    calls_per_step: ClassVar[int] = 1

    def __post_init__(self) -> None:
        choice("order", self.order, (1, 2, 3, 4))
        choice("variant", self.variant, ("tab", "rhoab", "logrhoab"))
        choice("field", self.field, ("noise", "velocity"))
        choice("final_order", self.final_order, (None, 1, 2, 3, 4))
        if self.variant == "logrhoab" and self.field == "velocity":
            raise ValueError('variant="logrhoab" needs field="noise": a flow\'s velocity starts at infinite log rho')

    def plan(self, schedule: Schedule, nodes: Sequence[Node], nfe: int | None = None) -> list[LinearStage]:
        @functools.cache  # the plans that `last_order` compares share their first stages
        def stage(i: int, order: int) -> LinearStage:
            used = nodes[i + 1 - order : i + 2]
            if order == 1:
                weights = [1.0]
            elif self.variant == "rhoab":
                weights = variable_step(self.field, used)
            else:
                weights = self._integrals(schedule, used)
            row = euler_row(self.field, nodes[i], nodes[i + 1], weights)
            return LinearStage(nodes[i], row, self.field, keep=range(self.order - 1))

        def stages(final_order: int) -> list[LinearStage]:
            return [stage(i, order) for i, order in enumerate(adams_orders(nodes, self.order, final_order))]

        final = self.final_order or last_order(stages, self.order, nodes[-1], schedule.data_scale)
        return spend(stages(final), nfe, len(nodes) - 1)

    def _integrals(self, schedule: Schedule, nodes: Sequence[Node]) -> list[float]:
        """w_0, w_1, ... of the step between the last two nodes, from predictions at all but the last."""
        *past, end = (node.lam for node in nodes)
        start, by_clock = past[-1], self.variant == "tab"
        edges = np.array([start, *(corners(schedule, start, end) if by_clock else ()), end])
        h = np.diff(edges)[:, None]
        x, gauss = _gauss_legendre(math.ceil(NEPERS / math.asinh(math.pi / abs(h).max())) + self.order)
        lam = (edges[:-1, None] + h * x).ravel()
        # dc / dlam, but for a factor that leaves with the sum
        slope = np.exp(start - lam) if self.field == "noise" else np.cosh(lam / 2) ** -2
        dc = (h * gauss).ravel() * slope
        u, points = lam, np.array(past[::-1])
        if by_clock:
            u, points = clock(schedule, lam), clock(schedule, points)
            if len(np.unique(points)) < len(points):
                raise ValueError(
                    'variant="tab" extrapolates in the schedule\'s clock, which stands still beyond its noise levels '
                    f'({schedule!r}): keep the nodes between them, or use variant="rhoab"'
                )
        weights = []
        for k, point in enumerate(points):
            others = np.delete(points, k)[:, None]
            weights.append(float(np.dot(dc, ((u - others) / (point - others)).prod(0)) / dc.sum()))
        return weights


@functools.cache
def _gauss_legendre(n: int) -> tuple[Array, Array]:
    """Points and weights on [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(n)
    return (x + 1) / 2, w / 2
