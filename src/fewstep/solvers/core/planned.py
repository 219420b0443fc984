"""The plans of late runs, kept for the next: a plan is a function of numbers, and is nothing but numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, is_dataclass
from functools import lru_cache
from typing import Any

import torch

from ...schedule import Node, Schedule
from .base import Solver, Stage

__all__ = ["forget", "planned"]

KEPT = 32  # plans
PLAIN: set[type] = {float, int, bool, str}
LONGEST = 256  # nodes of a plan that is kept; a stage takes about 1 KB, so that all take 8 MB at most


def planned(solver: Solver, schedule: Schedule, nodes: Sequence[Node], nfe: int | None = None) -> tuple[Stage, ...]:
    """`solver.plan(schedule, nodes, nfe)`, made once where all of these, and the plan, are numbers and names.

    Else, as with statistics, tuned plans or a schedule of your own that can be changed, it is made anew each time.
    """
    found = None
    # What is compiled warns of a cache, and looks into none.
    if len(nodes) <= LONGEST and not torch.compiler.is_compiling():
        try:
            asked = Asked(_value(solver), _value(schedule), tuple(nodes), nfe, solver, schedule)
            hash((asked.nodes, nfe))
        except TypeError:
            pass
        else:
            found = _kept(asked)
    return tuple(solver.plan(schedule, nodes, nfe)) if found is None else found


@dataclass(frozen=True)
class Asked:
    """Alike if the values of solver and schedule are, whatever they themselves take for equal."""

    solver_value: Any
    schedule_value: Any
    nodes: tuple[Node, ...]
    nfe: int | None
    solver: Solver = field(compare=False)
    schedule: Schedule = field(compare=False)


@lru_cache(KEPT)
def _kept(asked: Asked) -> tuple[Stage, ...] | None:
    """None where stages may change while they run."""
    plan = tuple(asked.solver.plan(asked.schedule, asked.nodes, asked.nfe))
    try:
        _value(plan)
    except TypeError:
        return None
    return plan


forget = _kept.cache_clear


def _value(thing: Any) -> Any:
    """All that it consists of and of which types, which can be hashed; TypeError if that is not numbers and names."""
    if isinstance(thing, float | int | str | range | None):
        return type(thing), thing
    if isinstance(thing, tuple):
        kinds = set(map(type, thing))
        if len(kinds) == 1 and kinds <= PLAIN:  # a table has a thousand floats
            return type(thing), *kinds, thing
        return type(thing), *map(_value, thing)
    if is_dataclass(thing) and not isinstance(thing, type) and thing.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        parts = vars(thing)
        return type(thing), *parts, *map(_value, parts.values())
    raise TypeError
