"""PNDM: Adams-Bashforth with constant weights after a pseudo Runge-Kutta start.

With phi(x, e, t) = (scale_t / scale_s) x + (level_t - scale_t / scale_s level_s) e, the DDIM step from s with the
prediction e, and r the middle of s and t in the schedule's clock, a step of 4, 3, 2 or 1 calls is

    4   e_1 = e(x, s), e_2 = e(phi(x, e_1, r), r), e_3 = e(phi(x, e_2, r), r), e_4 = e(phi(x, e_3, t), t)
        x_t = phi(x, (e_1 + 2 e_2 + 2 e_3 + e_4) / 6, t)
    3   e_1 = e(x, s), e_2 = e(phi(x, e_1, r), r), e_3 = e(phi(x, 2 e_2 - e_1, t), t)
        x_t = phi(x, (e_1 + 4 e_2 + e_3) / 6, t)
    2   e_1 = e(x, s), e_2 = e(phi(x, e_1, t), t),   x_t = phi(x, (e_1 + e_2) / 2, t)
    1   x_t = phi(x, sum_k w_k e_k, t)     with the weights of `ipndm` for as much history as there is

where the history is e_1 of each step. The three methods are

    F-PNDM   order 4, "prk"    3 steps of 4 calls, then w = (55, -59, 37, -9) / 24
    S-PNDM   order 2, "heun"   1 step of 2 calls, then w = (3, -1) / 2
    PLMS     order 4, "heun"   1 step of 2 calls, then w of order 2, 3, 4, 4, ...   (Stable Diffusion's; in diffusers
                               PNDM with skip_prk_steps, which lists the second time twice)

Twelve calls for three steps are too many for a small budget: steps that long diverge. So the start takes at most one
extra call for each step after the first, N steps cost 2 N - 1 calls, up to N + 9, and a budget is spent on the fewest
steps that use it up: F-PNDM is whole from 19 calls on. The extra calls go to the first steps, 3 to each, what is left
to the one that follows: hence the steps of 3 and of 2 calls, of which the paper has the second. With explicit nodes
any `nfe` from N to N + 9 can be asked for.

Liu, Ren, Lin & Zhao, Pseudo Numerical Methods for Diffusion Models on Manifolds (2022). The step of 3 calls is Kutta's,
in their manner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal, NamedTuple

from ..grid import Grid, uniform
from ..schedule import Node, Schedule
from .core.adams import CONSTANT_STEP, adams_orders
from .core.base import LinearStage, Row, choice, euler_row


class Call(NamedTuple):
    """The prediction is made, then x moves to `fraction` of the step with `weights`, newest prediction first."""

    fraction: float
    weights: tuple[float, ...]


# By number of calls.
RUNGE_KUTTA: dict[int, tuple[Call, ...]] = {
    2: (Call(1, (1,)), Call(1, (1 / 2, 1 / 2))),
    3: (Call(1 / 2, (1,)), Call(1, (2, -1)), Call(1, (1 / 6, 4 / 6, 1 / 6))),
    4: (Call(1 / 2, (1,)), Call(1 / 2, (1,)), Call(1, (1, 0, 0)), Call(1, (1 / 6, 2 / 6, 2 / 6, 1 / 6))),
}


@dataclass(frozen=True)
class PNDM:
    """F-PNDM; S-PNDM is `PNDM(2, "heun")`, PLMS `PNDM(4, "heun")`.

    `warmup` names the start: "prk", `order` - 1 steps of 4 calls, or "heun", one of 2 calls. `field="velocity"` is for
    flows, which start at alpha = 0.

    Cost: 1 call per step, and up to 3 (`order` - 1), or 1, more for the start. Order: docs/numerics.md (2: the
    weights are those of equal steps in sigma / alpha).
    """

    order: Literal[2, 3, 4] = 4
    warmup: Literal["prk", "heun"] = "prk"
    field: Literal["noise", "velocity"] = "noise"
    grid: ClassVar[Grid] = uniform

    def __post_init__(self) -> None:
        choice("order", self.order, (2, 3, 4))
        choice("warmup", self.warmup, ("prk", "heun"))
        choice("field", self.field, ("noise", "velocity"))

    @property
    def calls_per_step(self) -> int:
        return 4 if self.warmup == "prk" else 2

    def plan(self, schedule: Schedule, nodes: Sequence[Node], nfe: int | None = None) -> list[LinearStage]:
        stages: list[LinearStage] = []
        steps = zip(pairwise(nodes), self._calls(nodes, nfe), adams_orders(nodes, self.order, self.order), strict=True)
        for (s, t), calls, order in steps:
            if calls > 1:
                stages += self._runge_kutta(schedule, s, t, calls)
            else:
                row = euler_row(self.field, s, t, CONSTANT_STEP[order])
                stages.append(LinearStage(s, row, self.field, keep=range(self.order - 1)))
        return stages

    def _calls(self, nodes: Sequence[Node], nfe: int | None) -> list[int]:
        steps = len(nodes) - 1
        noisy = steps - (nodes[-1].sigma == 0)
        most = 3 * min(self.order - 1, noisy) if self.warmup == "prk" else min(1, noisy)
        extra = min(most, steps - 1) if nfe is None else nfe - steps
        if not 0 <= extra <= most:
            raise ValueError(f"a grid of {steps} steps costs PNDM {steps} to {steps + most} calls; got nfe={nfe!r}")
        return [1 + min(3, max(0, extra - 3 * i)) for i in range(steps)]

    def _runge_kutta(self, schedule: Schedule, s: Node, t: Node, calls: int) -> list[LinearStage]:
        """One step. The last call adds its share to the sum of the others, so that those need not be kept."""
        middle = schedule.node((s.time + t.time) / 2)
        scale, (own, *others) = euler_row(self.field, s, t, RUNGE_KUTTA[calls][-1].weights)
        stages, node = [], s
        for i, (fraction, weights) in enumerate(RUNGE_KUTTA[calls]):
            goal = middle if fraction < 1 else t
            move = euler_row(self.field, s, goal, weights)
            history = self.order - 1  # e_1 and what came before this step
            if i < calls - 2:
                stage = LinearStage(node, move, self.field, hold=True, keep=range(i + history))
            elif i == calls - 2:
                rest = Row(1.0, tuple(w - o for w, o in zip(move.weights, others, strict=True)))
                sums = Row(scale, tuple(others))
                stage = LinearStage(node, rest, self.field, sums, hold=True, keep=range(i, i + history))
            else:
                stage = LinearStage(node, Row(1.0, (own,)), self.field, keep=range(1, 1 + history))
            stages.append(stage)
            node = goal
        return stages
