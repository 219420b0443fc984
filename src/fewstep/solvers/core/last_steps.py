"""The order of the last steps, where it is not given: as high as pays on data whose solution is known.

The run of a plan on known data is simulated before any call, on numbers. The data are of two modes, +-m, of width w,

    D(x) = (alpha w^2 x + sigma^2 m tanh(alpha m x / V)) / V,   V = (alpha w)^2 + sigma^2 at a node,

and the ODE carries each quantile to itself. Most have m = 0: Gaussians of many widths, solved by sqrt(V_t / V_s) x. The
others are sharp modes as far apart as the data are wide: what Gaussians hide, as the denoised image is linear in x.

The order of the last step is raised from 1 while the next one leaves no larger error on any of `LAWS`, neither at the
end of the run nor of its last steps alone, entered from the solution: errors of a run can cancel. A long step to a low
noise level so gets order 1; with shorter steps the order rises. On modes errors below `UNSEEN` count as that: in many
steps each order is as good there, and which of them crosses zero is chance.

If noise is drawn on the way, the error is that of the standard deviation at the end, on Gaussians, as a plan is linear
there: root mean square over those no wider than the data, and over all. Orders below 1 are tried too, those of the
last four steps: exponents are twice as long there, and more steps long.

What this gains, and how often a lower order would have been better on other data, is measured in docs/numerics.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...schedule import Node

__all__ = ["last_order"]

# m and w, in units of the data's standard deviation, and the quantile in standard deviations of the noise.
GAUSSIANS = [(0.0, width, 1.0) for width in np.geomspace(0.05, 2, 12)]
MODES = [(1.0, width, -quantile) for width, quantile in product((0.05, 0.2), (0.1, 0.5, 1.5))]
LOWEST_WITH_NOISE = -2  # at 1 - n the n steps before the last one are of order 1 as well
UNSEEN = 1 / 256  # of the data's standard deviation: errors on modes that are left out of account
ROWS = 64  # of noise at a time
HALVINGS, FAR = 24, 12.0  # of the interval that holds the solution, to 1e-6 of a mode, far below UNSEEN; its reach


class _Numbers(np.ndarray[Any, np.dtype[np.float64]]):
    """An array that a stage takes for a tensor."""

    def add_(self, other: NDArray[np.float64], alpha: float = 1.0) -> _Numbers:
        self += alpha * other
        return self

    def sub_(self, other: NDArray[np.float64]) -> _Numbers:
        self -= other
        return self


def last_order(plan: Callable[[int], Sequence[Any]], highest: int, end: Node, data_scale: float) -> int:
    """The `final_order` of `core.base.orders`, up to `highest`, for a run to `end`; `plan(order)` are its stages."""
    tried = list(range(1, highest + 1))
    plans = [plan(order) for order in tried]
    drawing = any(stage.noise for stage in plans[-1])
    if drawing:
        tried += range(LOWEST_WITH_NOISE, 1)
        plans += map(plan, range(LOWEST_WITH_NOISE, 1))
    own = next((i for i, stages in enumerate(zip(*plans, strict=True)) if any(s != stages[0] for s in stages)), None)
    if own is None:
        return highest
    alpha, sigma = np.array([node[1:] for node in (*(stage.node for stage in plans[0]), end)]).T[..., None]
    m, w, quantile = np.array(GAUSSIANS if drawing else GAUSSIANS + MODES).T
    narrow, m, w = w <= 1, data_scale * m, data_scale * w
    variance = (alpha * w) ** 2 + sigma**2
    exact = np.sqrt(variance) * quantile  # x at each stage and at the end
    if not drawing:
        sharp = slice(len(GAUSSIANS), None)
        exact[:, sharp] = _solution((alpha * m)[:, sharp], np.sqrt(variance)[:, sharp], quantile[sharp])

    def denoised(i: int, x: Any) -> Any:
        modes = m * np.tanh(alpha[i] * m * x / variance[i])
        return (alpha[i] * w**2 * x + sigma[i] ** 2 * modes) / variance[i]

    # Row 0 is the run. Row 1 is one whose states are the solution's until the last steps; or, as the solution cannot be
    # told apart from noise, further rows are what the noise of each stage has become.
    rows = ROWS + len(plans[0]) - own if drawing else 2
    x: Any = np.zeros((rows, len(w))).view(_Numbers)
    x[: 1 if drawing else 2] = exact[0]
    state: Any = None
    used = 1
    for i, stage in enumerate(plans[0][:own]):
        x, state = stage(state, x, denoised(i, x))
        if not drawing:
            x[1] = exact[i + 1]
            if state.anchor is not None:
                state.anchor[1] = exact[i]
        elif stage.noise:
            used = _fold([x, *state.past]) if used == ROWS else used
            x[used] += stage.noise
            used += 1
    chosen, least = 1, np.inf
    for order, stages in zip(tried, plans, strict=True):
        last, memory = x, state
        for i, stage in enumerate(stages[own:]):
            last, memory = stage(memory, last, denoised(own + i, last))
            if stage.noise:
                last[used + i] += stage.noise
        error: Any = np.abs(last - exact[-1])
        error = np.maximum(error, np.where(m > 0, UNSEEN * data_scale, 0))
        if drawing:
            squares = (np.linalg.norm(last, axis=0) - exact[-1]) ** 2
            error = np.array([squares[narrow].sum(), squares.sum()])
        if np.all(error <= least):
            chosen, least = order, error
        elif not drawing:
            break
    return chosen


def _solution(centre: Any, spread: Any, quantile: Any) -> Any:
    """Where `quantile` of the noise is among modes of that `spread` at +-`centre`: the ODE keeps it."""
    low, high = -centre - FAR * spread, centre + FAR * spread
    share = _below(quantile)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        above = _below((middle - centre) / spread) + _below((middle + centre) / spread) > 2 * share
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return low


def _below(x: Any) -> Any:
    """The share of unit Gaussian noise below x; not by torch, which here may be following derivatives."""
    return np.frompyfunc(math.erfc, 1, 1)(-x / math.sqrt(2)).astype(float) / 2


def _fold(arrays: Sequence[NDArray[np.float64]]) -> int:
    """Put the same products, summed over rows, into as many rows as there are arrays."""
    triangle: Any = np.linalg.qr(np.stack(arrays, axis=-1).swapaxes(0, 1), "r")  # (widths, rows, arrays)
    for array, column in zip(arrays, np.moveaxis(triangle, -1, 0), strict=True):
        array[:] = 0
        array[: len(arrays)] = column.T
    return len(arrays)
