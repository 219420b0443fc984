"""SDE-DPM-Solver++: the reverse-time SDE, exponentially integrated in the denoised image, with multistep slopes.

    dx = (f x - (1 + eta) / 2 g^2 score) dt + sqrt(eta) g dw

with f and g of the forward process. For the step s -> t, h = lam_t - lam_s:

    x_t = (sigma_t / sigma_s) e^(-eta h) x + alpha_t (1 - e^z) m_0 + slopes + sigma_t sqrt(1 - e^(-2 eta h)) z'
    z = -(1 + eta) h,   z' unit noise

The slopes are those of DPM-Solver++ ("midpoint", "taylor" and order 3 of `core.exponential`, data field) with this z:
what changes is the weight (1 + eta) e^((1 + eta) lam) under which a prediction is integrated. eta = 1 is the
time reversal of the forward process and, at order 1, DDPM; eta = 0 is DPM-Solver++. Between them it is not the eta of
`DDIM`, whose noise has the variance eta^2 sigma_t^2 (1 - e^(-2 h)).

Lu et al., DPM-Solver++ (2022), the section on diffusion SDEs (eta = 1, orders 1 and 2).

Against diffusers: equal at orders 1 and 2; its order 3 has -1/2 where the expansion has +1/2 in the weight of the
second difference, which so tends to -alpha_t, not 0, with the length of the step. A slip: its ODE rule is right.
Against k-diffusion: its 2M-SDE "midpoint" is "midpoint", "heun" is "taylor", and its 3M-SDE is order 3 with
"taylor" (for the second step) and final_order=3.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from ..grid import Grid, uniform
from ..schedule import Node, Schedule
from .core.base import LinearStage, orders, spend
from .core.exponential import PUBLISHED_BEND, Variant, combine, distances
from .core.last_steps import last_order
from .dpm_solver import DPMSolverPP


@dataclass(frozen=True)
class SDEDPMSolverPP:
    """SDE-DPM-Solver++ 1, 2M and 3M; `eta` is the amount of noise, 0 `DPMSolverPP`; `final_order` as there.

    Cost: 1 call per step. Order: docs/numerics.md.
    """

    order: Literal[1, 2, 3] = 2
    variant: Variant = "midpoint"
    eta: float = 1.0
    final_order: int | None = None
    grid: ClassVar[Grid] = uniform
    calls_per_step: ClassVar[int] = 1

    def __post_init__(self) -> None:
        DPMSolverPP(self.order, self.variant, self.final_order)  # the same checks
        if not 0 <= self.eta < math.inf:
            raise ValueError(f"eta must be finite and at least 0; got eta={self.eta!r}")

    def plan(self, schedule: Schedule, nodes: Sequence[Node], nfe: int | None = None) -> list[LinearStage]:
        if not self.eta:
            return DPMSolverPP(self.order, self.variant, self.final_order).plan(schedule, nodes, nfe)
        if nodes[1].nsr > nodes[0].nsr:
            raise ValueError(f"eta={self.eta!r} needs nodes of falling noise; to invert, use eta=0")

        @functools.cache  # the plans that `last_order` compares share their first stages
        def stage(i: int, order: int) -> LinearStage:
            s, t = nodes[i : i + 2]
            h = t.lam - s.lam  # infinite from alpha = 0 and to sigma = 0: then the limits below
            scale = t.sigma / s.sigma * math.exp(-self.eta * h)
            r = distances(nodes[max(i - 2, 0) : i + 2], order)
            row = combine(scale, t.alpha, -(1 + self.eta) * h, r, self.variant, PUBLISHED_BEND)
            noise = t.sigma * math.sqrt(-math.expm1(-2 * self.eta * h))
            return LinearStage(s, row, keep=range(self.order - 1), noise=noise)

        def stages(final_order: int) -> list[LinearStage]:
            return [stage(i, order) for i, order in enumerate(orders(nodes, self.order, final_order))]

        final = self.final_order or last_order(stages, self.order, nodes[-1], schedule.data_scale)
        return spend(stages(final), nfe, len(nodes) - 1)
