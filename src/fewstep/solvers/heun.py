"""Heun's method: an Euler step, a second call at its end, and the step again with the mean slope.

    call 1     x^ = (scale_t / scale_s) x + (level_t - scale_t / scale_s level_s) d(x, s)
    call 2     x_t = (scale_t / scale_s) x + (level_t - scale_t / scale_s level_s) (d(x, s) + d(x^, t)) / 2

for d the noise (alpha = 1: the ODE dx/dsigma of EDM) or the velocity (flow models). A step to sigma = 0
is an Euler step of one call. Karras et al. (2022), Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

from ..grid import Grid, karras
from ..schedule import Node, Schedule
from .base import LinearStage, choice, euler_row


@dataclass(frozen=True)
class Heun:
    """The second-order method of EDM. `field="velocity"` is for flows, which start at alpha = 0.

    Cost: 2 calls per step; an odd budget takes the last step between noisy nodes at first order.
    Order: 2 (measured, docs/numerics.md).
    """

    field: Literal["noise", "velocity"] = "noise"
    grid: ClassVar[Grid] = karras
    calls_per_step: ClassVar[int] = 2

    def __post_init__(self) -> None:
        choice("field", self.field, ("noise", "velocity"))

    def plan(self, schedule: Schedule, nodes: Sequence[Node], nfe: int | None = None) -> list[LinearStage]:
        steps = list(pairwise(nodes))
        halves = [t.sigma > 0 for _, t in steps]
        full = sum(1 + half for half in halves)
        if nfe not in (None, full, full - 1) or (nfe == full - 1 and not any(halves)):
            raise ValueError(
                f"a grid of {len(steps)} steps costs Heun {full} calls, or one less with a first-order step; "
                f"got nfe={nfe!r}"
            )
        if nfe == full - 1:
            halves[sum(halves) - 1] = False
        stages = []
        for (s, t), half in zip(steps, halves, strict=True):
            first = euler_row(self.field, s, t)
            if half:
                stages.append(LinearStage(s, first, self.field, hold=True, keep=(0,)))
                stages.append(LinearStage(t, euler_row(self.field, s, t, (0.5, 0.5)), self.field))
            else:
                stages.append(LinearStage(s, first, self.field))
        return stages
