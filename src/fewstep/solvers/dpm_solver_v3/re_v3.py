"""RE iterations on DPM-Solver-v3: the second-order term of the EVODiff papers in coordinates fitted to the model.

"Improving Denoising Diffusion with Efficient Conditional Entropy Reduction" (ICLR 2025 submission) reports its CIFAR-10
results, Tables 1 and 3, for "RE-based" on top of DPM-Solver-v3, and prints no formula for them. Section 5.2 says: "we
adopt DPM-Solver-v3 as our baseline method for CIFAR-10 experiments, considering its demonstrated advantages in
optimized parameterization". Our reading, the smallest: v3's step of order 2 with its statistics, in which the RE
weights multiply the first derivative of g as they multiply the differences B of eq. (4.7) and (4.8), see `re_multi`.
With g as in `solver`, p, s, t successive nodes, and g_0 at s, g_1 at p, g_t at the predicted point:

    predict     g' = zeta_l (g_0 - g_1) / (lam_s - lam_p)
    correct     g' = eta zeta_s (g_t - g_0) / (lam_t - lam_s) + (1 - eta) zeta_l (g_0 - g_1) / (lam_s - lam_p)

    "prior"     zeta_l = sigma_s^2 / (sigma_s^2 + sigma_p^2),   zeta_s = sigma_t^2 / (sigma_s^2 + sigma_t^2)
    "minimal"   1 - zeta_l and 1 - zeta_s

Differences are divided by steps in lam, v3's variable. The priors assume Var(d) ~ sigma^2, which the paper states of
the denoised image d and not of g; we keep it. zeta = 1 and eta = 0 is DPM-Solver-v3 of order 2 without its corrector,
eta = 1 with it. As there, the priors leave away half of the second-order term for short steps: order 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from ...grid import Grid, uniform
from ...schedule import Node, Schedule
from ...statistics import EMS
from ..core.base import Stage, choice, orders, spend
from ..re_multi import REMulti
from .ems_integrals import Array, Quadrature
from .ems_steps import Affine, Steps


@dataclass(frozen=True)
class REMultiV3:
    """`REMulti` on the statistics of a model: `eta` and `zeta` as there, `quadrature` as in `DPMSolverV3`.

    Cost: 1 call per step. Order: 2 for zeta = 1, else 1 (measured, docs/numerics.md).
    """

    statistics: EMS
    eta: float = 0.0
    zeta: float | Literal["prior", "minimal"] = "prior"
    quadrature: Quadrature = "gauss"
    grid: ClassVar[Grid] = uniform
    calls_per_step: ClassVar[int] = 1

    def __post_init__(self) -> None:
        EMS.expect(self.statistics)
        REMulti(self.eta, self.zeta)  # the same checks
        choice("quadrature", self.quadrature, ("gauss", "trapezoid"))

    def plan(self, schedule: Schedule, nodes: Sequence[Node], nfe: int | None = None) -> list[Stage]:
        second = [order == 2 for order in orders(nodes, 2, final_order=2)]
        rule = REMulti(self.eta, self.zeta)
        steps = Steps(self.statistics, schedule, nodes, 2, self.quadrature)

        def slope(points: Sequence[int]) -> Array:
            """The weights of g at two nodes, the newer one first, in zeta times its derivative."""
            newer, older = points
            return np.asarray(rule.weight(nodes[newer], nodes[older]) * steps.derivatives(points, pseudo=False)[1])

        def move(i: int) -> Affine:
            if not second[i]:
                return steps.affine(i, [i], np.ones((1, 1)))
            points = [i, i - 1]
            return steps.affine(i, points, np.array([[1.0, 0.0], slope(points)]))

        def correct(i: int) -> Affine | None:
            if not second[i] or not self.eta:
                return None
            coming, past = slope([i + 1, i]), slope([i, i - 1])
            derivative = [*(self.eta * coming), 0.0] + (1 - self.eta) * np.array([0.0, *past])
            points = [i + 1, i, i - 1] if self.eta < 1 else [i + 1, i]
            return steps.affine(i, points, np.array([[0.0, 1.0, 0.0], derivative])[:, : len(points)])

        return spend(steps.stages(move, correct, keep=2 if 0 < self.eta < 1 else 1), nfe, len(nodes) - 1)
