"""Heun's method: an Euler step, a second call at its end, and the step again with the mean slope.

    call 1     x^ = (scale_t / scale_s) x + (level_t - scale_t / scale_s level_s) d(x, s)
    call 2     x_t = (scale_t / scale_s) x + (level_t - scale_t / scale_s level_s) (d(x, s) + d(x^, t)) / 2

for d the noise (alpha = 1: the ODE dx/dsigma of EDM) or the velocity (flow models). A step to sigma = 0
is an Euler step of one call. Karras et al. (2022), Algorithm 1.

Churn, their Algorithm 2: where s_tmin <= n <= s_tmax, n = sigma / alpha, a step of a grid of N steps begins by adding
noise, up to the level

    n^ = (1 + gamma) n,   gamma = min(s_churn / N, sqrt 2 - 1)

of standard deviation s_noise sqrt(n^^2 - n^2) in x / alpha, and starts from there. Algorithm 2 is written for
alpha = 1, where n = sigma; in x / alpha it is the same run on every schedule. Two ends are ours: a step from alpha = 0,
which is nothing but noise, adds none; and the noise before the first call is the driver's, with s_noise = 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

from ..grid import Grid, karras
from ..schedule import Node, Schedule
from .core.base import LinearStage, Row, choice, euler_row, renoise

MOST_CHURN = math.sqrt(2) - 1  # gamma at which as much noise is added as is there


@dataclass(frozen=True)
class Heun:
    """The second-order method of EDM. `field="velocity"` is for flows, which start at alpha = 0.

    `s_churn` > 0 adds noise on the way, where sigma / alpha lies in [`s_tmin`, `s_tmax`], `s_noise` times the exact
    amount. Karras et al. choose 40, 0.05, 50 and 1.003 for ImageNet-64.

    Cost: 2 calls per step; an odd budget takes the last step between noisy nodes at first order.
    Order: 2 (measured, docs/numerics.md).
    """

    field: Literal["noise", "velocity"] = "noise"
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.0
    grid: ClassVar[Grid] = karras
    calls_per_step: ClassVar[int] = 2

    def __post_init__(self) -> None:
        choice("field", self.field, ("noise", "velocity"))
        for name in ("s_churn", "s_noise"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and at least 0; got {name}={getattr(self, name)!r}")
        if not 0 <= self.s_tmin <= self.s_tmax:
            raise ValueError(f"churn needs 0 <= s_tmin <= s_tmax; got s_tmin={self.s_tmin!r}, s_tmax={self.s_tmax!r}")

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
        starts = self._churned(schedule, nodes)
        stages = []
        for s, t, half, lifted in zip(starts, nodes[1:], halves, [*starts[1:], nodes[-1]], strict=True):
            if half:
                stages.append(LinearStage(s, euler_row(self.field, s, t), self.field, hold=True, keep=(0,)))
                last = LinearStage(t, euler_row(self.field, s, t, (0.5, 0.5)), self.field)
            else:
                last = LinearStage(s, euler_row(self.field, s, t), self.field)
            stages.append(last if lifted is t else self._lift(last, t, lifted))
        return stages

    def _churned(self, schedule: Schedule, nodes: Sequence[Node]) -> list[Node]:
        """Where the steps start."""
        if not self.s_churn:
            return list(nodes[:-1])
        if nodes[1].nsr > nodes[0].nsr:
            raise ValueError(f"s_churn={self.s_churn!r} needs nodes of falling noise; to invert, use s_churn=0")
        more = math.log1p(min(self.s_churn / (len(nodes) - 1), MOST_CHURN))
        starts = []
        for node in nodes[:-1]:
            if node.alpha and self.s_tmin <= node.nsr <= self.s_tmax:
                try:
                    starts.append(schedule.node(schedule.time_at(node.lam - more)))
                except ValueError as error:
                    raise ValueError(
                        f"churn at time {node.time!r} leaves the schedule: "
                        f"keep s_tmax below sigma / alpha = {node.nsr:g}"
                    ) from error
            else:
                starts.append(node)
        if starts[0] is not nodes[0] and self.s_noise != 1:
            raise ValueError(
                f"s_noise={self.s_noise!r} cannot scale the noise before the first call: set s_tmax below "
                f"sigma / alpha = {nodes[0].nsr:g}, or s_noise=1"
            )
        return starts

    def _lift(self, stage: LinearStage, t: Node, lifted: Node) -> LinearStage:
        """The last stage of a step to t, with the noise that the next step begins with."""
        scale, noise = renoise(t, lifted)
        row = stage.move
        move = Row(scale * row.scale, tuple(scale * weight for weight in row.weights))
        return stage._replace(move=move, noise=self.s_noise * noise)
