"""The integrals of DPM-Solver-v3 over each step of a run, in numpy and float64.

For the step from lam_s to lam_t, with L' = l, S' = s, both 0 at lam_s, and l, s, b linear between the points of the
table of statistics:

    dl, ds        L and S at lam_t
    beta          integral of e^-S b
    moments[k]    integral of e^(L + S) (lam - lam_s)^k / k!
    drift         integral of e^(L + S) B,    B(lam) the integral of e^-S b up to lam

A step is cut at the points of the table. Each cell is a step of an implicit Runge-Kutta method for B and for integrals
over it: Gauss-Legendre with 4 points on cells of at most 1/4, exact to rounding for statistics of size 1, or the
trapezoidal rule over whole cells, as in the authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...statistics import EMS

__all__ = ["Integrals", "Quadrature", "integrals"]

Quadrature = Literal["gauss", "trapezoid"]
Array = NDArray[np.float64]
Index = NDArray[np.int64]

LONGEST = 0.25  # the longest cell of "gauss"
CHUNK = 1 << 20  # numbers in one temporary array


class Integrals(NamedTuple):
    """Each (steps, elements), `moments` (steps, orders, elements)."""

    dl: Array
    ds: Array
    beta: Array
    moments: Array
    drift: Array


class Rule(NamedTuple):
    """The points of a Runge-Kutta method in [0, 1], its matrix and its weights."""

    points: Array
    matrix: Array
    weights: Array


def gauss(n: int) -> Rule:
    """The method of order 2n whose matrix integrates the Lagrange polynomials of the Gauss-Legendre points."""
    x, w = np.polynomial.legendre.leggauss(n)
    points = (x + 1) / 2
    basis = np.linalg.inv(np.vander(points, n, increasing=True))  # column j: the j-th Lagrange polynomial
    powers = points[:, None] ** np.arange(1, n + 1) / np.arange(1, n + 1)
    return Rule(points, powers @ basis, w / 2)


RULES = {
    "gauss": gauss(4),
    "trapezoid": Rule(np.array([0.0, 1.0]), np.array([[0.0, 0.0], [0.5, 0.5]]), np.array([0.5, 0.5])),
}


def integrals(statistics: EMS, lams: Sequence[float], orders: int, quadrature: Quadrature) -> Integrals:
    """Over the steps between successive `lams`, rising or falling, for the flattened elements of the statistics."""
    table = statistics.lam.numpy()
    values = np.stack([getattr(statistics, name).reshape(len(table), -1).numpy() for name in "lsb"])
    rule = RULES[quadrature]
    longest = LONGEST if quadrature == "gauss" else math.inf
    cells = [_cut(table, s, t, longest) for s, t in pairwise(lams)]
    edges = np.concatenate(cells)  # each step's, one after another
    last = np.cumsum([len(cell) for cell in cells]) - 1  # of each step, among the edges
    first = np.concatenate([[0], last[:-1] + 1])
    width = max(1, CHUNK // (len(edges) * len(rule.points)))
    parts = [
        _over(table, values[:, :, j : j + width], edges, first, last, orders, rule)
        for j in range(0, values.shape[2], width)
    ]
    return Integrals(*(np.concatenate(column, -1) for column in zip(*parts, strict=True)))


def _cut(table: Array, s: float, t: float, longest: float) -> Array:
    """s, the points of the table between, and t; with more points where these lie further apart than `longest`."""
    low, high = min(s, t), max(s, t)
    edges = np.concatenate([[low], table[(table > low) & (table < high)], [high]])
    pieces = np.maximum(1, np.ceil(np.diff(edges) / longest)).astype(int)
    steps = np.repeat(np.diff(edges) / pieces, pieces)
    inner = np.concatenate([np.arange(n) for n in pieces])
    edges = np.append(np.repeat(edges[:-1], pieces) + inner * steps, high)
    return edges if s < t else edges[::-1]


def _over(table: Array, values: Array, edges: Array, first: Index, last: Index, orders: int, rule: Rule) -> Integrals:
    """`integrals` for some of the elements; values (3, points, elements)."""
    cell = np.delete(np.arange(len(edges)), last)  # the edge at which each cell starts
    step = np.searchsorted(last, cell)
    start = np.searchsorted(cell, first)  # the first cell of each step
    h = edges[cell + 1] - edges[cell]
    lam = edges[cell, None] + h[:, None] * rule.points  # (cells, rule's points)
    at_edges = _linear(table, values, edges)
    at_points = _linear(table, values, lam.ravel()).reshape(3, *lam.shape, -1)

    def integrated(column: int) -> tuple[Array, Array]:
        """The integral of l or s, linear on each cell, at the points and over the steps."""
        edge, point = at_edges[column], at_points[column]
        whole = h[:, None] * (edge[cell] + edge[cell + 1]) / 2
        before = _before(whole, start, step)
        inside = (h[:, None] * rule.points)[..., None] * (edge[cell][:, None] + point) / 2
        return before[:, None] + inside, np.add.reduceat(whole, start)

    big_l, dl = integrated(0)
    big_s, ds = integrated(1)
    pull = np.exp(-big_s) * at_points[2]
    growth = np.exp(big_l + big_s)
    weights = h[:, None] * rule.weights
    whole = np.einsum("cp,cpe->ce", weights, pull)
    inside = h[:, None, None] * np.einsum("qp,cpe->cqe", rule.matrix, pull)
    big_b = _before(whole, start, step)[:, None] + inside
    away = lam - edges[first][step][:, None]
    moments = [
        np.add.reduceat(np.einsum("cp,cpe->ce", weights * away**k / math.factorial(k), growth), start)
        for k in range(orders)
    ]
    drift = np.add.reduceat(np.einsum("cp,cpe->ce", weights, growth * big_b), start)
    return Integrals(dl, ds, np.add.reduceat(whole, start), np.stack(moments, 1), drift)


def _before(whole: Array, start: Index, step: Index) -> Array:
    """What the cells of the same step before each one add up to."""
    total = np.cumsum(whole, 0) - whole
    return np.asarray(total - total[start][step])


def _linear(table: Array, values: Array, lam: Array) -> Array:
    """Between the points of the table; values (3, points, elements) -> (3, *lam.shape, elements)."""
    right = np.clip(np.searchsorted(table, lam, side="right"), 1, len(table) - 1)
    share = ((lam - table[right - 1]) / (table[right] - table[right - 1]))[..., None]
    return np.asarray(values[:, right - 1] * (1 - share) + values[:, right] * share)
