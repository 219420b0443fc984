"""STORK: a stabilised Runge-Kutta rule whose inner calls are extrapolated from the calls of earlier steps.

In y = x / scale and c = level / scale of `base` the ODE is dy = m dc. For the step s -> t, w = (c - c_s) / (c_t - c_s),
the prediction is taken for m_0 + w D_1 + w^2 D_2, from differences over the steps before, and integrated by

    order 2   the Runge-Kutta-Gegenbauer rule of second order with 50 stages     int w = 1/2, int w^2 = 0.2494
    order 4   ROCK4, of fourth order                                             int w = 1/2, int w^2 = 1/3

As the extrapolated prediction depends on time alone, a rule for dy = m dc is a quadrature, and what makes it stable
does not come into play: with one derivative both are `IPNDM` with variable=True of order 2; with two, order 4 is that
of order 3. The first step is DDIM, the second has one derivative.

Stabilized Runge-Kutta for diffusion (ICLR 2026), arXiv 2505.24210, as its code integrates flows, where c is the time
itself. Its code differs: order 2 calls at the places of another rule, (j^2 + j - 2) / (s^2 + s - 2), for
(j^2 + 3 j - 4) / (s^2 + 3 s - 4), which makes int w 0.4896 and the method of first order; the first derivative from
three predictions is that of equal steps; three derivatives, wrong even for those, are left out here; and for models of
noise its order 2 integrates noise over the table's time as if it were a velocity, which is done in sigma / alpha here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from ..grid import Grid, uniform
from ..schedule import Node, Schedule
from .core.adams import adams_orders, matching, points_of
from .core.base import LinearStage, choice, euler_row, spend

STAGES = 50  # as published


@dataclass(frozen=True)
class STORK:
    """STORK-2 and STORK-4 with one or two `derivatives`; `field="velocity"` is for flows, which start at alpha = 0.

    Cost: 1 call per step. Order: `derivatives` + 1, but for the quadrature of order 2 (measured, docs/numerics.md).
    """

    order: Literal[2, 4] = 2
    derivatives: Literal[1, 2] = 1
    field: Literal["noise", "velocity"] = "noise"
    grid: ClassVar[Grid] = uniform
    calls_per_step: ClassVar[int] = 1

    def __post_init__(self) -> None:
        choice("order", self.order, (2, 4))
        choice("derivatives", self.derivatives, (1, 2))
        choice("field", self.field, ("noise", "velocity"))

    def plan(self, schedule: Schedule, nodes: Sequence[Node], nfe: int | None = None) -> list[LinearStage]:
        square = 1 / 3 if self.order == 4 else gegenbauer(2)
        stages = []
        for i, known in enumerate(adams_orders(nodes, self.derivatives + 1, self.derivatives + 1)):
            points = points_of(self.field, nodes[i + 1 - known : i + 2])
            weights = matching(points, (1.0, 0.5, square)[:known])
            row = euler_row(self.field, nodes[i], nodes[i + 1], weights)
            stages.append(LinearStage(nodes[i], row, self.field, keep=range(self.derivatives)))
        return spend(stages, nfe, len(nodes) - 1)


def gegenbauer(power: int, stages: int = STAGES) -> float:
    """The integral of w^power, power > 0, from 0 to 1 by the Runge-Kutta-Gegenbauer rule of second order.

    Y_j = mu_j Y_(j-1) + nu_j Y_(j-2) + slope_j f(w_(j-1)) + ... f(0): Skaras et al., Super-Time-Stepping Schemes for
    Parabolic Equations (2021), section 3.
    """
    width = stages**2 + 3 * stages - 4
    before = y = 0.0  # f(0) = 0
    for j in range(2, stages + 1):
        place = max((j - 1) ** 2 + 3 * (j - 1) - 4, 6) / width  # that of the first stage is that of the second
        mu, nu = (2 * j + 1) * _b(j) / (j * _b(j - 1)), -(j + 1) * _b(j) / (j * _b(j - 2))
        before, y = y, mu * y + nu * before + mu * 6 / width * place**power
    return y


def _b(j: int) -> float:
    return (1.0, 1 / 3)[j] if j < 2 else 4 * (j - 1) * (j + 4) / (3 * j * (j + 1) * (j + 2) * (j + 3))
