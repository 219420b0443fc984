"""The plans of late runs, kept for the next: a plan is a function of numbers, and is nothing but numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import is_dataclass
from functools import lru_cache
from typing import Any

import torch

from ...schedule import Node, Schedule
from .base import Solver, Stage

__all__ = ["forget", "planned"]

KEPT = 32  # plans
LONGEST = 256  # nodes of a plan that is kept; a stage takes about 1 KB, so that all take 8 MB at most


def planned(solver: Solver, schedule: Schedule, nodes: Sequence[Node], nfe: int | None = None) -> tuple[Stage, ...]:
    """`solver.plan(schedule, nodes, nfe)`, made once where all of these are numbers and names.

    Else, as with statistics, tuned plans or a schedule of your own that can be changed, it is made anew each time.
    """
    if not torch.compiler.is_compiling():  # what is compiled warns of a cache, and looks into none
        try:
            return _kept(solver, schedule, tuple(nodes), nfe)  # type: ignore[arg-type]
        except TypeError:  # where something cannot be hashed, or `_kept` refuses
            pass
    return tuple(solver.plan(schedule, nodes, nfe))


@lru_cache(KEPT)
def _kept(solver: Solver, schedule: Schedule, nodes: tuple[Node, ...], nfe: int | None) -> tuple[Stage, ...]:
    if len(nodes) > LONGEST or not (_is_value(solver) and _is_value(schedule)):
        raise TypeError
    return tuple(solver.plan(schedule, nodes, nfe))


forget = _kept.cache_clear


def _is_value(thing: Any) -> bool:
    """Whether it is made of numbers and names alone, which cannot change: what is equal to it has the same plan."""
    if is_dataclass(thing) and not isinstance(thing, type):
        return thing.__dataclass_params__.frozen and _is_value(tuple(vars(thing).values()))  # type: ignore[attr-defined]
    return all(map(_is_value, thing)) if isinstance(thing, tuple) else isinstance(thing, float | int | str | None)
