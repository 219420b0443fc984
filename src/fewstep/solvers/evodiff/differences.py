"""The regression behind EVODiff's rows: on the differences of a plan's answers, within bounds.

Under the prior of `path_prior` all that a run computes is a vector, and products of vectors are covariances. The
weights of differences d_j, newest first, that leave the least of a target are those of a linear regression on them.
"""

from __future__ import annotations

import math
import sys

import numpy as np

from .path_prior import Functional

__all__ = ["LEAD", "Differences"]

# The largest weight of the newest difference alone, and the most that all weights beyond it may sum to, without signs.
# Where a long step follows a short one, or differences hardly differ, the prior asks for hundreds. So a sample stays
# within 10 times what is answered.
LEAD, REST = 1.0, 1.0
RIDGE = 1e-10  # relative; keeps nearly parallel differences from large weights of opposite signs


class Differences:
    """Those of up to `steps` answers, vectors of `size` numbers; a row weighs the newest `most`, at least one.

    vectors: these, (k, size), newest first.
    """

    def __init__(self, steps: int, size: int, most: int):
        # Both are filled from their ends, so that the newest come first.
        self._room, self._gram = np.empty((steps, size)), np.zeros((steps, steps))
        self._place, self._most = steps, most
        self.forget()

    def __len__(self) -> int:
        return len(self.vectors)

    def forget(self) -> None:
        self.vectors = self._room[:0]

    def add(self, answer: Functional, before: Functional) -> tuple[tuple[float, ...], float]:
        """The weights of those that are known by which the new one is foretold, and the norm of what they leave."""
        self._place -= 1
        change = np.subtract(answer, before, out=self._room[self._place])
        known = self.vectors[: self._most - 1]
        here = slice(self._place, self._place + 1 + len(known))
        self.vectors = self._room[here]
        along = self.vectors.dot(change)
        self._gram[self._place, here] = self._gram[here, self._place] = along
        self._products = self._gram[here, here]
        self._products[0, 0] = along[0] * (1 + RIDGE) + sys.float_info.min  # the least for 0, whose weights are 0
        self._inverse = np.asarray(np.linalg.inv(self._products), np.float64)
        # The first row of an inverse of products is what the first leaves of itself, by the regression on the others.
        left, *others = self._inverse[0].tolist()
        return tuple(-weight / left for weight in others), 1 / math.sqrt(left)

    def rows(self, target: Functional) -> tuple[float, Functional]:
        """The weight of the newest alone, within LEAD, and of all, what these have beyond that within REST."""
        along = self.vectors.dot(target)
        two, (first, *rest) = float(along[0] / self._products[0, 0]), self._inverse.dot(along).tolist()
        lead = min(max(two, -LEAD), LEAD)
        beyond = [first - two, *rest]
        part = REST / max(REST, sum(map(abs, beyond)))
        return lead, np.array([lead + part * beyond[0], *(part * weight for weight in rest)])
