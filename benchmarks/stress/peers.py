"""The peers of the stress bench."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fewstep.grid import Grid
from fewstep.schedule import EDM, Flow, Node, Schedule
from fewstep.solvers import Solver, Stage
from fewstep.table import SOLVERS

__all__ = ["FORMER", "PEERS", "SIMPLE", "Named", "peer"]

SIMPLE = ("ddim", "dpmpp-2m")
FORMER = (*SIMPLE, "unipc-2", "unipc-3", "ipndm-4", "deis-3", "gradient-estimation")  # known by 2024
PEERS = (*FORMER, "cab-2", "cab-2-half", "res-multistep", "reab-2", "f-dpm")


def peer(name: str, schedule: Schedule) -> Solver:
    """A solver of `fewstep.table`, in the form that suits the schedule."""
    return SOLVERS[name].suited(isinstance(schedule, Flow))


@dataclass(frozen=True)
class Named:
    """`peer(name, schedule)` of whichever schedule it plans for; ValueError for an unknown name."""

    name: str

    def __post_init__(self) -> None:
        if self.name not in SOLVERS:
            raise ValueError(f"a solver must be one of {', '.join(sorted(SOLVERS))}; got {self.name!r}")

    @property
    def grid(self) -> Grid:
        return peer(self.name, EDM()).grid

    @property
    def calls_per_step(self) -> int:
        return peer(self.name, EDM()).calls_per_step

    def plan(self, schedule: Schedule, nodes: Sequence[Node], nfe: int | None = None) -> Sequence[Stage]:
        return peer(self.name, schedule).plan(schedule, nodes, nfe)
