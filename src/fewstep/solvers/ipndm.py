"""iPNDM: Adams-Bashforth from the first step on, with whatever history there is.

    x_t = (scale_t / scale_s) x + (level_t - scale_t / scale_s level_s) e,   e = sum_k w_k e_k

for e_k the noise, or the velocity, predicted k steps ago; with alpha = 1, x + (sigma_t - sigma_s) e. The weights of the
order p, 1 on the first step, 2 on the second and so on up to `order`, are

    1;   3, -1 (/ 2);   23, -16, 5 (/ 12);   55, -59, 37, -9 (/ 24)

those of equal steps in sigma / alpha, on any grid: right to second order only, and better than the right ones in a few
steps of Karras' grid. `variable=True` is iPNDM_v, with the weights of the steps as they are (`core.adams`): rho-AB
DEIS. Its published code means the same, but has a misplaced bracket, (1 - A b) / 2 for (1 - A) b / 2, in orders 3 and
4, and a wrong sign and factor in order 4.

Zhang & Chen, Fast Sampling of Diffusion Models with Exponential Integrator (2023), after Liu et al., Pseudo Numerical
Methods for Diffusion Models on Manifolds (2022), without its Runge-Kutta start. iPNDM_v: zju-pi/diff-sampler.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from ..grid import Grid, karras
from ..schedule import Node, Schedule
from .core.adams import CONSTANT_STEP, adams_orders, variable_step
from .core.base import LinearStage, choice, euler_row, spend


@dataclass(frozen=True)
class IPNDM:
    """iPNDM of order 1 to 4; `variable=True` for iPNDM_v. `field="velocity"` is for flows, which start at alpha = 0.

    Cost: 1 call per step. Order: docs/numerics.md (2 with constant weights, whose steps are not equal).
    """

    order: Literal[1, 2, 3, 4] = 4
    variable: bool = False
    field: Literal["noise", "velocity"] = "noise"
    grid: ClassVar[Grid] = karras
    calls_per_step: ClassVar[int] = 1

    def __post_init__(self) -> None:
        choice("order", self.order, (1, 2, 3, 4))
        choice("variable", self.variable, (False, True))
        choice("field", self.field, ("noise", "velocity"))

    def plan(self, schedule: Schedule, nodes: Sequence[Node], nfe: int | None = None) -> list[LinearStage]:
        stages = []
        for i, order in enumerate(adams_orders(nodes, self.order, self.order)):
            used = nodes[i + 1 - order : i + 2]
            weights = variable_step(self.field, used) if self.variable and order > 1 else CONSTANT_STEP[order]
            row = euler_row(self.field, nodes[i], nodes[i + 1], weights)
            stages.append(LinearStage(nodes[i], row, self.field, keep=range(self.order - 1)))
        return spend(stages, nfe, len(nodes) - 1)
