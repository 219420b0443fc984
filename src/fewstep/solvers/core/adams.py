"""Adams-Bashforth: a DDIM step with a weighted mean of the last predictions. Shared by DEIS, iPNDM and PNDM.

With the ODE of `base`, d(x / scale) = m dc for c = level / scale, the step s -> t with predictions m_0 at s, m_1 a step
earlier, and so on, is

    x_t = (scale_t / scale_s) x + (level_t - scale_t / scale_s level_s) sum_k w_k m_k,   sum_k w_k = 1

It is exact for a polynomial in c if the weights integrate the Lagrange polynomials l_k of the points c_k,

    w_k = int l_k(c) dc / (c_t - c_s) from c_s to c_t,   that is   sum_k w_k p_k^j = 1 / (j + 1),   j = 0 ... order - 1

with p_k = (c_k - c_s) / (c_t - c_s). CONSTANT_STEP are the weights of p_k = -k, which PNDM and iPNDM use on any grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from ...schedule import Node
from .base import Field, departure, scale_and_level

__all__ = ["CONSTANT_STEP", "adams_orders", "expected", "lagrange", "matching", "points_of", "variable_step"]

# By order, newest prediction first.
CONSTANT_STEP = (
    (),
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def adams_orders(nodes: Sequence[Node], order: int, final_order: int) -> list[int]:
    """The order of each step, as `orders`, but that a prediction at alpha = 0 counts: the velocity is finite there."""
    last = len(nodes) - 2 - (nodes[-1].sigma == 0)  # the step into the last noisy node
    return [
        max(1, min(order, i + 1, final_order + last - i)) if math.isfinite(s.lam) and math.isfinite(t.lam) else 1
        for i, (s, t) in enumerate(pairwise(nodes))
    ]


def variable_step(field: Field, nodes: Sequence[Node]) -> list[float]:
    """w_0, w_1, ... of the step between the last two of `nodes`, from predictions at all but the last."""
    points = points_of(field, nodes)
    return matching(points, [1 / j for j in range(1, len(points) + 1)])


def expected(field: Field, nodes: Sequence[Node]) -> list[float]:
    """The weights of the predictions at all but the last of `nodes` in what their polynomial is at the last."""
    points = points_of(field, nodes)
    return matching(points, [1.0] * len(points))


def points_of(field: Field, nodes: Sequence[Node]) -> list[float]:
    """p_k of all but the last of `nodes`, newest first."""
    known = [departure(field, node) for node in nodes[:-1]]
    *used, start, end = (level / scale for scale, level in (*known, scale_and_level(field, nodes[-1])))
    return [(c - start) / (end - start) for c in (start, *reversed(used))]


def matching(points: Sequence[float], moments: Sequence[float]) -> list[float]:
    """The weights w_k with sum_k w_k points_k^j = moments_j for j = 0, 1, ...: l_k, term by term."""
    return [sum(c * moment for c, moment in zip(row, moments, strict=True)) for row in lagrange(points)]


def lagrange(points: Sequence[float]) -> list[list[float]]:
    """For each point the coefficients, lowest first, of the polynomial that is 1 there and 0 at the other points."""
    rows = []
    for k, point in enumerate(points):
        row = [1.0]
        for other in (*points[:k], *points[k + 1 :]):
            raised = [0.0, *row]
            row = [(up - other * same) / (point - other) for up, same in zip(raised, [*row, 0.0], strict=True)]
        rows.append(row)
    return rows
