"""DPM-Solver-v3: multistep exponential integrators in coordinates fitted to the model.

With f = (sigma noise - l x) / alpha = (1 - l) x / alpha - denoised, and L' = l, S' = s, B' = e^-S b in lam, all three 0
at lam_s, where l, s, b are the empirical model statistics, one number each for every element of x and every lam:

    x_t / alpha_t = e^-L_t (x_s / alpha_s - integral of e^(L + S) (g + B)),   g = e^-S f - B

is exact. The solver takes g for a polynomial in lam - lam_s; s and b are fitted to leave little but a constant:

    x_t = alpha_t e^-L_t (x_s / alpha_s - sum_k g^(k) integral of e^(L + S) (lam - lam_s)^k / k!
                                        - integral of e^(L + S) B)

    order p predictor     k < p, from g at s and at the p - 1 nodes before it
    order p corrector     k < p, from g at t, at s and at the p - 2 nodes before it, with f_t of the predicted point

g^(k) are the derivatives of the interpolating polynomial, or "pseudo": k! times the divided difference of the first
k + 1 points in the order s, t, then older ones. The corrector's order is that of the step; `corrector_pseudo` raises it
by one. After a correction f_t is kept, which is what the authors mean by adjusting the noise at the corrected point.

l = 1, s = b = 0 is DPM-Solver++, l = 0, s = -1, b = 0 DPM-Solver.

Zheng, Lu, Chen & Zhu, DPM-Solver-v3 (2023), eq. (13), (16) and (18), Appendix A, and the authors' code. The code moves
every node to the nearest point of the table and integrates by the trapezoidal rule over it; here l, s, b are linear
between points, so that any grid can be walked, and integrals are exact ("gauss"). Then the order of the method does not
depend on the table. `quadrature="trapezoid"` with nodes on points of the table is the code.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from ...grid import Grid, uniform
from ...schedule import Node, Schedule
from ...statistics import EMS
from ..core.base import Stage, choice, orders, spend
from ..core.last_steps import last_order
from .ems_integrals import Quadrature
from .ems_steps import Affine, Steps


@dataclass(frozen=True)
class DPMSolverV3:
    """DPM-Solver-v3 of order 1, 2 or 3 on the statistics of a model (`fewstep.estimate_ems`).

    `corrector`: after every step (True), only in the noisy half of the clock ("half") or never (False). It leaves out
        the last step into a noisy node, where it would cost a call.
    `predictor_pseudo`, `corrector_pseudo`: see the module's docstring.
    `final_order`: as in `DPMSolverPP`; 1 in the authors' code (`lower_order_final`).
    `quadrature`: "gauss", or "trapezoid" as in the authors' code.

    Recommended by the authors: order 3 on CIFAR-10, with the corrector up to 6 calls, and with predictor_pseudo at 5;
    order 3 with corrector_pseudo on LSUN; order 2 with corrector_pseudo for guidance, "half" if it is strong.

    Cost: 1 call per step. Order: docs/numerics.md.
    """

    statistics: EMS
    order: Literal[1, 2, 3] = 3
    corrector: bool | Literal["half"] = True
    predictor_pseudo: bool = False
    corrector_pseudo: bool = False
    final_order: int | None = None
    quadrature: Quadrature = "gauss"
    grid: ClassVar[Grid] = uniform
    calls_per_step: ClassVar[int] = 1

    def __post_init__(self) -> None:
        EMS.expect(self.statistics)
        choice("order", self.order, (1, 2, 3))
        choice("corrector", self.corrector, (True, False, "half"))
        choice("final_order", self.final_order, (None, 1, 2, 3))
        choice("quadrature", self.quadrature, ("gauss", "trapezoid"))
        if self.corrector_pseudo and not self.corrector:
            raise ValueError("corrector_pseudo=True needs a corrector: use corrector=True")

    def plan(self, schedule: Schedule, nodes: Sequence[Node], nfe: int | None = None) -> list[Stage]:
        final = self.final_order
        if final is None:
            # Of the method alone: what the statistics fit is not a Gaussian.
            plain = replace(self, statistics=EMS.constant())
            final = last_order(plain._plans(schedule, nodes), self.order, nodes[-1], schedule.data_scale)
        return spend(self._plans(schedule, nodes)(final), nfe, len(nodes) - 1)

    def _plans(self, schedule: Schedule, nodes: Sequence[Node]) -> Callable[[int], list[Stage]]:
        """The plan with a given final order."""
        steps = Steps(self.statistics, schedule, nodes, self.order + 1, self.quadrature)
        half = (schedule.t_clean + schedule.t_max) / 2

        @functools.cache
        def correct(i: int, step_order: int) -> Affine | None:
            order = step_order + self.corrector_pseudo
            if order == 1 or not self.corrector or (self.corrector == "half" and nodes[i + 1].time <= half):
                return None
            points = [i, i + 1, *range(i - 1, i + 1 - order, -1)]
            return steps.affine(i, points, steps.derivatives(points, self.corrector_pseudo))

        @functools.cache
        def move(i: int, order: int) -> Affine:
            points = list(range(i, i - order, -1))
            return steps.affine(i, points, steps.derivatives(points, self.predictor_pseudo))

        def stages(final_order: int) -> list[Stage]:
            order = orders(nodes, self.order, final_order)
            kept = self.order - 1 + self.corrector_pseudo
            return steps.stages(lambda i: move(i, order[i]), lambda i: correct(i, order[i]), keep=kept)

        return stages
