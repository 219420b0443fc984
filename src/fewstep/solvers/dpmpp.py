"""DPM-Solver++: multistep exponential integrators in the denoised image.

For the step s -> t let h = lam_t - lam_s, let r_0 h and r_1 h be the two steps before it, m_0, m_1, m_2 the
last predictions (newest first), and psi_k = psi(k, -h) the exponential remainders of `base`:

    D_0 = (m_0 - m_1) / r_0,   D_1 = (m_1 - m_2) / r_1
    order 1   x_t = (sigma_t / sigma_s) x + alpha_t (1 - e^-h) m_0                    (DDIM)
    order 2   ... + alpha_t (1 - e^-h) D_0 / 2                                        "midpoint"
              ... - alpha_t psi_1 D_0                                                 "taylor"
    order 3   ... - alpha_t psi_1 E_1 - alpha_t psi_2 E_2
              E_1 = D_0 + r_0 / (r_0 + r_1) (D_0 - D_1),   E_2 = (D_0 - D_1) / (r_0 + r_1)

Lu et al., DPM-Solver++ (2022), Algorithm 2 (2M), and 3M as in the authors' code. "taylor" is their solver
type of that name, called "heun" in diffusers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from ..grid import Grid, uniform
from ..schedule import Node, Schedule
from .base import LinearStage, Row, choice, euler_row, orders, psi, spend

# The last predictions as basis vectors: a formula written on them is a row of weights.
M0, M1, M2 = np.eye(3)


@dataclass(frozen=True)
class DPMSolverPP:
    """DPM-Solver++ 1, 2M and 3M.

    `final_order` is the highest order of the step into the last noisy node: 1 in the authors' code
    (`lower_order_final`), 2 in diffusers, which ends at sigma = 0, and here: 1 costs a third-order method
    its order. On log-SNR grids that stop at sigma_min, 1 is better at 5 calls, more is better from 8 on.

    Cost: 1 call per step. Order: docs/numerics.md (3M is capped by its first-order first step).
    """

    order: Literal[1, 2, 3] = 2
    variant: Literal["midpoint", "taylor"] = "midpoint"
    final_order: int = 2
    grid: ClassVar[Grid] = uniform
    calls_per_step: ClassVar[int] = 1

    def __post_init__(self) -> None:
        choice("order", self.order, (1, 2, 3))
        choice("variant", self.variant, ("midpoint", "taylor"))
        choice("final_order", self.final_order, (1, 2, 3))

    def plan(self, schedule: Schedule, nodes: Sequence[Node], nfe: int | None = None) -> list[LinearStage]:
        stages = []
        for i, order in enumerate(orders(nodes, self.order, self.final_order)):
            row = _row(nodes[max(i - 2, 0) : i + 2], order, self.variant)
            stages.append(LinearStage(nodes[i], row, keep=range(self.order - 1)))
        return spend(stages, nfe, len(nodes) - 1)


def _row(nodes: Sequence[Node], order: int, variant: str) -> Row:
    """The step between the last two nodes, from predictions at the node before it and earlier ones."""
    s, t = nodes[-2:]
    if order == 1:
        return euler_row("data", s, t)
    h = t.lam - s.lam
    r0 = (s.lam - nodes[-3].lam) / h
    d0 = (M0 - M1) / r0
    if order == 2:
        slope = -math.expm1(-h) / 2 * d0 if variant == "midpoint" else -psi(1, -h) * d0
    else:
        r1 = (nodes[-3].lam - nodes[-4].lam) / h
        d1 = (M1 - M2) / r1
        e1 = d0 + r0 / (r0 + r1) * (d0 - d1)
        e2 = (d0 - d1) / (r0 + r1)
        slope = -psi(1, -h) * e1 - psi(2, -h) * e2
    weights = -math.expm1(-h) * M0 + slope
    return Row(t.sigma / s.sigma, tuple(float(w) for w in t.alpha * weights[:order]))
