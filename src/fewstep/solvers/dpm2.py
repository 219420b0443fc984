"""DPM-Solver-2 with any intermediate point: one call at s, one inside the step, on EDM's grid.

    call 1     x_m = DDIM(x, e_s) to m,   n_m = n_t^r n_s^(1 - r),   n = sigma / alpha
    call 2     x_t = DDIM(x, (1 - 1 / (2 r)) e_s + 1 / (2 r) e_m) to t

for the noise prediction e: a step of `DPMSolver(order=2, method="singlestep")`, there with r = 1/2. Lu et al.,
DPM-Solver (2022), Appendix B (the general DPM-Solver-2); `dpm2` of diff-sampler and, with r = 1/2, `sample_dpm_2`
of k-diffusion, which have it for alpha = 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from ..grid import Grid, karras
from ..schedule import Node, Schedule
from .core.base import LinearStage
from .core.exponential import NEAREST, calls_of_steps, single_step


@dataclass(frozen=True)
class DPM2:
    """DPM-Solver-2 with the second call at the fraction `r` in [0.01, 1) of the step in log-SNR.

    It cannot leave alpha = 0, where a flow starts: use `DPMSolverPP(order=2, method="singlestep")` there.

    Cost: 2 calls per step; an odd budget takes the last step between noisy nodes at first order.
    Order: 2 (measured, docs/numerics.md).
    """

    r: float = 0.5
    grid: ClassVar[Grid] = karras
    calls_per_step: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if not NEAREST <= self.r < 1:
            raise ValueError(f"r must lie in [{NEAREST}, 1): of nearer calls the slope is rounding; got r={self.r!r}")

    def plan(self, schedule: Schedule, nodes: Sequence[Node], nfe: int | None = None) -> list[LinearStage]:
        stages: list[LinearStage] = []
        for (s, t), calls in zip(pairwise(nodes), calls_of_steps(nodes, 2, 2, nfe), strict=True):
            inner = [schedule.node(schedule.time_at(s.lam + self.r * (t.lam - s.lam)))] if calls == 2 else []
            stages += single_step("noise", (s, *inner, t), "midpoint")
        return stages
