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

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

from ..grid import Grid, uniform
from ..schedule import Node, Schedule
from .core.base import LinearStage, choice, orders, spend
from .core.exponential import Exponential, Variant, calls_of_steps, multistep_row, single_step
from .core.last_steps import last_order

PACKED = 2  # `final_order` of the papers' packings of single steps


@dataclass(frozen=True)
class _Family:
    order: Literal[1, 2, 3] = 2
    variant: Variant = "midpoint"
    final_order: int | None = None
    method: Literal["multistep", "singlestep"] = "multistep"
    field: ClassVar[Exponential]
    grid: ClassVar[Grid] = uniform

    def __post_init__(self) -> None:
        choice("order", self.order, (1, 2, 3))
        choice("variant", self.variant, ("midpoint", "taylor"))
        choice("final_order", self.final_order, (None, 1, 2, 3))
        choice("method", self.method, ("multistep", "singlestep"))

    @property
    def calls_per_step(self) -> int:
        return self.order if self.method == "singlestep" else 1

    def plan(self, schedule: Schedule, nodes: Sequence[Node], nfe: int | None = None) -> list[LinearStage]:
        if self.method == "singlestep":
            return self._single_steps(schedule, nodes, nfe)

        @functools.cache  # the plans that `last_order` compares share their first stages
        def stage(i: int, order: int) -> LinearStage:
            row = multistep_row(self.field, nodes[max(i - 2, 0) : i + 2], order, self.variant)
            return LinearStage(nodes[i], row, self.field, keep=range(self.order - 1))

        def stages(final_order: int) -> list[LinearStage]:
            return [stage(i, order) for i, order in enumerate(orders(nodes, self.order, final_order))]

        final = self.final_order or last_order(stages, self.order, nodes[-1], schedule.data_scale)
        return spend(stages(final), nfe, len(nodes) - 1)

    def _single_steps(self, schedule: Schedule, nodes: Sequence[Node], nfe: int | None) -> list[LinearStage]:
        stages: list[LinearStage] = []
        packing = calls_of_steps(nodes, self.order, self.final_order or PACKED, nfe)
        for (s, t), calls in zip(pairwise(nodes), packing, strict=True):
            inner = [s.lam + k / calls * (t.lam - s.lam) for k in range(1, calls)]
            points = (s, *(schedule.node(schedule.time_at(lam)) for lam in inner), t)
            stages += single_step(self.field, points, self.variant)
        return stages


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

    `final_order` is the highest order of the step into the last noisy node; the step before may have one more. None
    finds it by `core.last_steps`: 1 where the last step is long, as in few calls of most grids. The authors' multistep
    code has 1 below ten steps (`lower_order_final`), diffusers 2 where it ends at sigma = 0. Single steps are packed as
    in the papers, which is 2; 3 makes those of order 3 equal ("singlestep_fixed").

    Cost: 1 call per step, with single steps `order`. Order: docs/numerics.md (3M: 2, see `core.exponential`).
    """

    field: ClassVar[Exponential] = "data"
