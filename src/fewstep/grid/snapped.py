"""A grid for models that know certain levels only: tables of integer time, flows of 50 levels."""

from __future__ import annotations

from collections.abc import Sequence

from ..schedule import Discrete, Node, Schedule
from .base import Grid, GridFunction, focused

__all__ = ["snapped"]


@Grid
def snapped(
    schedule: Schedule, steps: int, *, grid: GridFunction = focused, times: Sequence[float] | None = None
) -> tuple[Node, ...]:
    """The nodes of `grid`, each moved to the nearest of `times`, and to the next one where that is taken.

    `times` are the levels that the model knows, on the schedule's clock in any order; None are the entries of a
    `Discrete` table. A last node at sigma = 0 stays where it is: no model is called there. Multistep solvers call
    the model at the nodes alone; single-step ones (DPM2, 2S, 3S, PNDM) and churn between them, too.

    ValueError where there are fewer times than nodes.
    """
    if times is None:
        if not isinstance(schedule, Discrete):
            raise ValueError(f"times are needed for {schedule!r}: the levels that the model knows, on its clock")
        times = range(len(schedule.alphas_cumprod))
    nodes = tuple(grid(schedule, steps))
    end = nodes[-1:] if nodes[-1].sigma == 0 else ()
    wanted = nodes[: len(nodes) - len(end)]
    levels = sorted({level for level in map(schedule.node, times) if level.sigma > 0}, key=lambda level: level.lam)
    if len(levels) < len(wanted):
        raise ValueError(
            f"times must be at least one a node; got {len(levels)} for {len(wanted)} nodes: take fewer steps"
        )
    found: list[Node] = []
    place = -1
    for left, node in zip(range(len(wanted), 0, -1), wanted, strict=True):
        nearest = min(range(len(levels)), key=lambda k: abs(levels[k].time - node.time))
        place = min(max(nearest, place + 1), len(levels) - left)
        found.append(levels[place])
    return (*found, *end)
