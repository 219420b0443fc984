"""Plans for drivers that hand x to others between calls.

A solver that holds an anchor over a call, as UniPC does, goes on from that and never looks at x again: what others did
to x (an inpainting blend, a callback's edit) is lost. Its predictor and its corrector scale the anchor alike, so the
corrected solution is x plus a combination of predictions, the same in exact arithmetic, with the edit in it. It
also keeps one tensor less.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch

from ..solvers import Stage

__all__ = ["as_differences"]


def as_differences(stages: Sequence[Stage]) -> list[Stage]:
    """The same stages with every correction of a held step as a difference to x; others as they are."""
    plan: list[Any] = list(stages)
    for i in range(len(plan) - 1):
        here, there = plan[i : i + 2]
        if not getattr(here, "hold", False) or there.correct is None or not _same(here.move.scale, there.correct.scale):
            continue
        kept = range(here.keep) if isinstance(here.keep, int) else here.keep
        if list(kept) != list(range(len(kept))):
            continue
        # The corrector takes back what the predictor added, so all of its predictions are needed one call later.
        needed = range(max(len(kept), len(here.move.weights)))
        plan[i] = here._replace(hold=False, keep=len(needed) if isinstance(here.keep, int) else needed)
        plan[i + 1] = there._replace(correct=_minus(there.correct, here.move))
    return plan


def _same(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else bool(a is b or a == b)


def _minus(correct: Any, move: Any) -> Any:
    """`correct - move` as a row on x; `correct` counts one prediction more, the newest."""
    pairs = zip_longest(correct.weights, (0.0, *move.weights), fillvalue=0.0)
    changed = {"scale": 1.0, "weights": tuple(new - old for new, old in pairs)}
    if hasattr(correct, "offset"):
        changed["offset"] = correct.offset - move.offset
    return correct._replace(**changed)
