"""RES: refined exponential solvers, which meet the order conditions of exponential integrators to the third order.

For the step s -> t, u the clock in which the denoised image m is taken for a polynomial, h = u_t - u_s, z = -h,
phi_1(z) = (e^z - 1) / z and phi_(k + 1)(z) = (phi_k(z) - 1 / k!) / z:

    clock       u                            L
    "lam"       lam                          alpha_t
    "sigma"     log((alpha + sigma) / sigma) alpha_t + sigma_t

    x_t = (sigma_t / sigma_s) x + L h sum_j b_j m_j,   sum_j b_j = phi_1(z)

    multistep   m_j the predictions of the steps before, through which the polynomial runs
    2S          m_2 at c_2 = 1/2;   b_2 = phi_2(z) / c_2
    3S          m_2, m_3 at c_2 = 1/2, c_3 = 1, with g = 4, for which 2 (g c_2 + c_3) = 3 (g c_2^2 + c_3^2);
                a_32 = g c_2 phi_2(c_2 z) + c_3^2 / c_2 phi_2(c_3 z),   b_3 = phi_2(z) / (g c_2 + c_3),   b_2 = g b_3

Stages are made by the same rule with c_k z and rows a_kj, sum_j a_kj = c_k phi_1(c_k z). Order 2 in lam is
`DPMSolverPP` with variant="taylor"; order 3 is not its 3M, which takes half of the second difference, nor its 3S.

On flows, where alpha + sigma = 1, ComfyUI's res_multistep and RES4LYF work in -log sigma: that is "sigma". It is finite
at pure noise, so that the first prediction counts as history.

Zhang et al., Improved Order Analysis and Design of Exponential Integrator for Diffusion Models Sampling (2023);
Hochbruck & Ostermann, Explicit Exponential Runge-Kutta Methods for Semilinear Parabolic Problems (2005), eq. (5.8).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

from ..grid import Grid, uniform
from ..schedule import Node, Schedule
from .core.adams import adams_orders
from .core.base import LinearStage, Row, choice, euler_row, orders, spend
from .core.exponential import calls_of_steps, combine, psi

MIDDLE = 0.5  # c_2
GAMMA = 4.0  # g


@dataclass(frozen=True)
class RES:
    """RES 2M, 3M, 2S and 3S. `clock="sigma"` is what ComfyUI runs on flows.

    Cost: 1 call per step, with single steps `order`. Order: `order` (measured, docs/numerics.md).
    """

    order: Literal[2, 3] = 2
    method: Literal["multistep", "singlestep"] = "multistep"
    clock: Literal["lam", "sigma"] = "lam"
    grid: ClassVar[Grid] = uniform

    def __post_init__(self) -> None:
        choice("order", self.order, (2, 3))
        choice("method", self.method, ("multistep", "singlestep"))
        choice("clock", self.clock, ("lam", "sigma"))

    @property
    def calls_per_step(self) -> int:
        return self.order if self.method == "singlestep" else 1

    def plan(self, schedule: Schedule, nodes: Sequence[Node], nfe: int | None = None) -> list[LinearStage]:
        if self.method == "singlestep":
            calls = calls_of_steps(nodes, self.order, self.order, nfe)
            return [
                stage
                for (s, t), n in zip(pairwise(nodes), calls, strict=True)
                for stage in self._single(schedule, s, t, n)
            ]
        allowed = (orders if self.clock == "lam" else adams_orders)(nodes, self.order, self.order)
        stages = []
        for i, order in enumerate(allowed):
            s, t = nodes[i : i + 2]
            row = euler_row("data", s, t)
            if order > 1:
                h = self._u(t) - self._u(s)
                past = [(self._u(nodes[i - k]) - self._u(s)) / h for k in range(1, order)]
                row = combine(row.scale, self._level(t), -h, past, "taylor")
            stages.append(LinearStage(s, row, keep=range(self.order - 1)))
        return spend(stages, nfe, len(nodes) - 1)

    def _u(self, node: Node) -> float:
        return node.lam if self.clock == "lam" else math.log1p(node.alpha / node.sigma)

    def _level(self, node: Node) -> float:
        return node.alpha if self.clock == "lam" else node.alpha + node.sigma

    def _at(self, schedule: Schedule, u: float) -> Node:
        return schedule.node(schedule.time_at(u if self.clock == "lam" else math.log(math.expm1(u))))

    def _single(self, schedule: Schedule, s: Node, t: Node, calls: int) -> list[LinearStage]:
        if calls == 1:
            return [LinearStage(s, euler_row("data", s, t))]
        h = self._u(t) - self._u(s)

        def row(to: Node, c: float, *newer: float) -> Row:
            """L h times the coefficients, the oldest, which makes up their sum, last."""
            gain = self._level(to) * h
            return Row(to.sigma / s.sigma, tuple(gain * w for w in (*newer, c * _phi(1, -c * h) - sum(newer))))

        middle = self._at(schedule, self._u(s) + MIDDLE * h)
        stages = [LinearStage(s, row(middle, MIDDLE), hold=True, keep=(0,))]
        if calls == 2:
            return [*stages, LinearStage(middle, row(t, 1.0, _phi(2, -h) / MIDDLE))]
        a = GAMMA * MIDDLE * _phi(2, -MIDDLE * h) + _phi(2, -h) / MIDDLE
        b = _phi(2, -h) / (GAMMA * MIDDLE + 1)
        stages.append(LinearStage(middle, row(t, 1.0, a), hold=True, keep=(0, 1)))
        return [*stages, LinearStage(t, row(t, 1.0, b, GAMMA * b))]


def _phi(k: int, z: float) -> float:
    return (math.expm1(z) if k == 1 else psi(k - 1, z)) / z
