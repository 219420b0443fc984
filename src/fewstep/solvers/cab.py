"""CAB: Adams-Bashforth of order 2 or 3, and a share of what the last prediction had not been expected to be.

    x_t = (scale_t / scale_s) x + (level_t - scale_t / scale_s level_s) (sum_k w_k d_k + theta (d_0 - d^))
    d^  = (1 + r) d_1 - r d_2,   r = (c_1 - c_0) / (c_2 - c_1)  for the nodes' c = level / scale, newest first

d_k is the noise, or the velocity, predicted k steps ago; d^ is what a straight line through the two predictions before
gives for d_0. w are the weights of `core.adams` for the steps as they are. The first step is DDIM, the second
Adams-Bashforth of order 2. theta is 0.9 for the authors' pixel models, 0.2 for a large flow model; 0 is `IPNDM` with
variable=True. As d_0 - d^ is of second order in the step, the order of the rule stays 2 for any theta.

CAB (2026), arXiv 2605.16736, whose code has alpha = 1 or a flow, where c is sigma. The authors' last step to sigma = 0
extrapolates, too; here it returns the last denoised prediction, as for all solvers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from ..grid import Grid, karras
from ..schedule import Node, Schedule
from .core.adams import adams_orders, expected, variable_step
from .core.base import LinearStage, choice, euler_row, spend


@dataclass(frozen=True)
class CAB:
    """CAB-2 and CAB-3; `field="velocity"` is for flows, which start at alpha = 0.

    Cost: 1 call per step. Order: 2 (measured, docs/numerics.md).
    """

    order: Literal[2, 3] = 2
    theta: float = 0.9
    field: Literal["noise", "velocity"] = "noise"
    grid: ClassVar[Grid] = karras
    calls_per_step: ClassVar[int] = 1

    def __post_init__(self) -> None:
        choice("order", self.order, (2, 3))
        if not 0 <= self.theta < math.inf:
            raise ValueError(f"theta must be finite and at least 0; got theta={self.theta!r}")
        choice("field", self.field, ("noise", "velocity"))

    def plan(self, schedule: Schedule, nodes: Sequence[Node], nfe: int | None = None) -> list[LinearStage]:
        stages = []
        for i, known in enumerate(adams_orders(nodes, 3, 3)):
            weights = variable_step(self.field, nodes[i + 1 - min(known, self.order) : i + 2])
            if known == 3:
                surprise = (1.0, *(-w for w in expected(self.field, nodes[i - 2 : i + 1])))
                weights = [w + self.theta * more for w, more in zip([*weights, 0.0], surprise, strict=False)]
            row = euler_row(self.field, nodes[i], nodes[i + 1], weights)
            stages.append(LinearStage(nodes[i], row, self.field, keep=(0, 1)))
        return spend(stages, nfe, len(nodes) - 1)
