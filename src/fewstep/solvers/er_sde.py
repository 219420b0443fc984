"""ER-SDE: reverse-time SDEs whose noise is a function of choice, with Taylor terms in n = sigma / alpha.

For the step s -> t, phi a function with which phi(n) / n does not fall, r = phi(n_t) / phi(n_s), d = n_t - n_s:

    x_t / alpha_t = r x / alpha_s + (1 - r) m_0 + a D_1 + b D_2 + sqrt(n_t^2 - r^2 n_s^2) z
    D_1 = (m_0 - m_1) / (n_s - n_1),   D_2 = 2 (D_1 - D_1') / (n_s - n_2),   D_1' that of the step before
    a   = d + int phi(n_t) / phi(n) dn,   b = d^2 / 2 + int (n - n_s) phi(n_t) / phi(n) dn,   from n_t to n_s

    phi   n (e^(n^0.3) + 10)   ER-SDE-5, the authors' and ComfyUI's choice: little noise at the end
          n^(1 + eta)          the reverse-time SDE for eta = 1, the ODE for eta = 0

m_k are the denoised images k steps ago. D_1 is the slope of the last step, not that of the parabola at s, so that the
third stage adds no order. The authors' code sums 100 left rectangles for the integrals, ComfyUI's 200; here they are
right to rounding. 100 rectangles leave out 0.7 % of a and 2 % of b in long steps, more of b in short ones.

Cui et al., Elucidating the Solution Space of Extended Reverse-Time SDE for Diffusion Models (2023); their code, whose
noise functions are numbered, and ComfyUI's er_sde.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ..grid import Grid, uniform
from ..schedule import Node, Schedule
from .core.base import LinearStage, Row, choice, euler_row, orders, spend

Array = NDArray[np.float64]
POWER, FLOOR = 0.3, 10.0  # of the authors' phi
X, WEIGHTS = np.polynomial.legendre.leggauss(32)


@dataclass(frozen=True)
class ERSDE:
    """ER-SDE-Solver 1 to 3; `eta` a number is phi = n^(1 + eta), None the authors' phi.

    Cost: 1 call per step. Order: docs/numerics.md.
    """

    order: Literal[1, 2, 3] = 3
    eta: float | None = None
    grid: ClassVar[Grid] = uniform
    calls_per_step: ClassVar[int] = 1

    def __post_init__(self) -> None:
        choice("order", self.order, (1, 2, 3))
        if self.eta is not None and not 0 <= self.eta < math.inf:
            raise ValueError(f"eta must be None or finite and at least 0; got eta={self.eta!r}")

    def plan(self, schedule: Schedule, nodes: Sequence[Node], nfe: int | None = None) -> list[LinearStage]:
        if self.eta != 0 and nodes[1].nsr > nodes[0].nsr:
            raise ValueError(f"{self!r} draws noise and needs nodes of falling noise; to invert, use eta=0")
        stages = [
            self._stage(nodes[max(i - 2, 0) : i + 2], order)
            for i, order in enumerate(orders(nodes, self.order, self.order))
        ]
        return spend(stages, nfe, len(nodes) - 1)

    def _stage(self, nodes: Sequence[Node], order: int) -> LinearStage:
        s, t = nodes[-2:]
        keep = range(self.order - 1)
        if order == 1 and self.eta == 0:
            return LinearStage(s, euler_row("data", s, t), keep=keep)
        r = math.exp(self._log_phi(t.nsr) - self._log_phi(s.nsr)) if t.nsr and s.alpha else 0.0
        weights = np.zeros(3)
        weights[0] = 1 - r
        if order > 1:
            low, high = math.log(t.nsr), math.log(s.nsr)
            n = np.exp(low + (X + 1) / 2 * (high - low))
            mass = WEIGHTS * (high - low) / 2 * n * np.exp(self._log_phi(t.nsr) - self._log_phi(n))
            step = t.nsr - s.nsr
            past = [node.nsr for node in reversed(nodes[:-2])]
            slope = np.array([1.0, -1.0, 0.0]) / (s.nsr - past[0])
            weights += (step + mass.sum()) * slope
            if order > 2:
                before = np.array([0.0, 1.0, -1.0]) / (past[0] - past[1])
                weights += (step**2 + 2 * ((n - s.nsr) * mass).sum()) * (slope - before) / (s.nsr - past[1])
        row = Row(t.alpha / s.alpha * r if s.alpha else 0.0, tuple((t.alpha * weights[:order]).tolist()))
        noise = t.alpha * math.sqrt(max(0.0, t.nsr**2 - (r * s.nsr) ** 2)) if r else t.sigma
        return LinearStage(s, row, keep=keep, noise=0.0 if self.eta == 0 else noise)

    def _log_phi(self, n: float | Array) -> Array:
        log = np.log(n)
        return (
            (1 + self.eta) * log if self.eta is not None else log + np.logaddexp(np.exp(POWER * log), math.log(FLOOR))
        )
