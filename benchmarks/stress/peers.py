"""The peers of the stress bench."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from fewstep.grid import Grid, uniform
from fewstep.schedule import EDM, Flow, Node, Schedule
from fewstep.solvers import Solver, Stage
from fewstep.solvers.core.base import Field, LinearStage, euler_row, spend
from fewstep.table import SOLVERS

__all__ = ["PEERS", "SIMPLE", "GradientEstimation", "Named", "peer"]

SIMPLE = ("ddim", "dpmpp-2m")
PEERS = (*SIMPLE, "unipc-2", "unipc-3", "ipndm-4", "deis-3", "gradient-estimation")


@dataclass(frozen=True)
class GradientEstimation:
    """Euler's method with 2 d - d_before in place of d: Permenter & Yuan (2023), gamma = 2, as in k-diffusion.

    d is the noise, on flows, which start at alpha = 0, the velocity; the step to sigma = 0 takes d itself.
    Cost: 1 call per step.
    """

    field: Field = "noise"
    grid: ClassVar[Grid] = uniform
    calls_per_step: ClassVar[int] = 1

    def plan(self, schedule: Schedule, nodes: Sequence[Node], nfe: int | None = None) -> list[LinearStage]:
        stages: list[LinearStage] = []
        for i, (s, t) in enumerate(pairwise(nodes)):
            weights = (2.0, -1.0) if i and t.sigma else (1.0,)
            stages.append(LinearStage(s, euler_row(self.field, s, t, weights), self.field, keep=(0,)))
        return spend(stages, nfe, len(nodes) - 1)


def peer(name: str, schedule: Schedule) -> Solver:
    """A peer, or a solver of `fewstep.table`, in the form that suits the schedule."""
    flow = isinstance(schedule, Flow)
    if name == "gradient-estimation":
        return GradientEstimation("velocity" if flow else "noise")
    return SOLVERS[name].on_flow if flow else SOLVERS[name].solver


@dataclass(frozen=True)
class Named:
    """`peer(name, schedule)` of whichever schedule it plans for; ValueError for an unknown name."""

    name: str

    def __post_init__(self) -> None:
        known = {*SOLVERS, *PEERS}
        if self.name not in known:
            raise ValueError(f"a solver must be one of {', '.join(sorted(known))}; got {self.name!r}")

    @property
    def grid(self) -> Grid:
        return peer(self.name, EDM()).grid

    @property
    def calls_per_step(self) -> int:
        return peer(self.name, EDM()).calls_per_step

    def plan(self, schedule: Schedule, nodes: Sequence[Node], nfe: int | None = None) -> Sequence[Stage]:
        return peer(self.name, schedule).plan(schedule, nodes, nfe)
