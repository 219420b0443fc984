"""Plans for drivers that hand x to others between calls.

A solver that holds an anchor over a call, as UniPC does, goes on from that and never looks at x again: what others did
to x (an inpainting blend, a callback's edit) is lost. Its predictor and its corrector scale the anchor alike, so the
corrected solution is x plus a combination of predictions, the same in exact arithmetic, with the edit in it. It
also keeps one tensor less.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from ..solvers import Stage
from ..solvers.core.base import LinearStage, Row

__all__ = ["as_differences"]


def as_differences(stages: Sequence[Stage]) -> list[Stage]:
    """The same stages with every correction of a held step as a difference to x; others as they are."""
    plan = list(stages)
    for i in range(len(plan) - 1):
        here, there = plan[i : i + 2]
        if not (isinstance(here, LinearStage) and isinstance(there, LinearStage) and here.hold and there.correct):
            continue
        if there.correct.scale != here.move.scale or list(here.keep) != list(range(len(here.keep))):
            continue
        # The corrector takes back what the predictor added, so all of its predictions are needed one call later.
        needed = range(max(len(here.keep), len(here.move.weights)))
        plan[i] = here._replace(hold=False, keep=needed)
        plan[i + 1] = there._replace(correct=_minus(there.correct, here.move))
    return plan


def _minus(correct: Row, move: Row) -> Row:
    """`correct - move` as a row on x; `correct` counts one prediction more, the newest."""
    pairs = zip_longest(correct.weights, (0.0, *move.weights), fillvalue=0.0)
    return Row(1.0, tuple(new - old for new, old in pairs))
