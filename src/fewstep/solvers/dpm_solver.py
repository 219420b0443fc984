"""DPM-Solver and DPM-Solver++: exponential integrators of `core.exponential` in the noise and in the denoised image.

`method="multistep"` makes one call per step and extrapolates from the steps before (2M, 3M);
`method="singlestep"` makes `order` calls per step, at 1/2, or at 1/3 and 2/3 of its length in log-SNR (2S, 3S).

Single steps spend a budget as the papers do, with the last steps lowered: 3, 3, ..., 3, 2, 1 or 3, ..., 3, 1 or
3, ..., 3, 2 calls; 2, ..., 2 or 2, ..., 2, 1. Their code places the ends of the steps evenly on log-SNR grids, as we
do on every grid; on time grids it takes every third (second) node, and inner points that are even in time. There
a run differs, though not the row of a step.

Lu et al., DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps (2022);
Lu et al., DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models (2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

from ..grid import Grid, uniform
from ..schedule import Node, Schedule
from .core.base import LinearStage, choice, orders, spend
from .core.exponential import Exponential, Variant, calls_of_steps, multistep_row, single_step


@dataclass(frozen=True)
class _Family:
    order: Literal[1, 2, 3] = 2
    variant: Variant = "midpoint"
    final_order: int = 2
    method: Literal["multistep", "singlestep"] = "multistep"
    field: ClassVar[Exponential]
    grid: ClassVar[Grid] = uniform

    def __post_init__(self) -> None:
        choice("order", self.order, (1, 2, 3))
        choice("variant", self.variant, ("midpoint", "taylor"))
        choice("final_order", self.final_order, (1, 2, 3))
        choice("method", self.method, ("multistep", "singlestep"))

    @property
    def calls_per_step(self) -> int:
        return self.order if self.method == "singlestep" else 1

    def plan(self, schedule: Schedule, nodes: Sequence[Node], nfe: int | None = None) -> list[LinearStage]:
        stages: list[LinearStage] = []
        if self.method == "singlestep":
            for (s, t), calls in zip(
                pairwise(nodes), calls_of_steps(nodes, self.order, self.final_order, nfe), strict=True
            ):
                inner = [s.lam + k / calls * (t.lam - s.lam) for k in range(1, calls)]
                points = (s, *(schedule.node(schedule.time_at(lam)) for lam in inner), t)
                stages += single_step(self.field, points, self.variant)
            return stages
        for i, order in enumerate(orders(nodes, self.order, self.final_order)):
            row = multistep_row(self.field, nodes[max(i - 2, 0) : i + 2], order, self.variant)
            stages.append(LinearStage(nodes[i], row, self.field, keep=range(self.order - 1)))
        return spend(stages, nfe, len(nodes) - 1)


@dataclass(frozen=True)
class DPMSolver(_Family):
    """DPM-Solver 1, 2 and 3, in noise prediction. Options as in `DPMSolverPP`.

    It cannot leave alpha = 0, where a flow starts: use `DPMSolverPP` there.

    Cost: 1 call per step, with single steps `order`. Order: docs/numerics.md.
    """

    field: ClassVar[Exponential] = "noise"


@dataclass(frozen=True)
class DPMSolverPP(_Family):
    """DPM-Solver++ 1, 2M, 3M, 2S and 3S, in data prediction.

    `final_order` is the highest order of the step into the last noisy node: 1 in the authors' multistep code
    (`lower_order_final`), 2 in diffusers, which ends at sigma = 0, in the single-step packings, and here: 1
    costs a third-order method its order. On log-SNR grids that stop at sigma_min, 1 is better for multistep
    methods at 5 calls, more is better from 8 on. 3 makes single steps of order 3 equal ("singlestep_fixed").

    Cost: 1 call per step, with single steps `order`. Order: docs/numerics.md (3M: 2, see `core.exponential`).
    """

    field: ClassVar[Exponential] = "data"
