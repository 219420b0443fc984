"""The order of the last steps, where it is not given: as high as pays on data whose solution is known.

A multistep plan is linear, so that its run on Gaussian data is known before any call. With data N(0, s^2) and
V = (alpha s)^2 + sigma^2 at a node,

    D(x) = alpha s^2 / V x,   and the ODE carries x from one node to another as sqrt(V_t / V_s) x

The order of the last step is raised from 1 while the next one leaves no larger error at any s of `WIDTHS`, neither at
the end of the run nor of its last steps alone, entered from the solution: errors of a run can cancel. A long step to a
low noise level so gets order 1; with shorter steps the order rises.

If noise is drawn on the way, the error is that of the standard deviation at the end, root mean square over s, and the
orders that are raised from 1 are those of the last four steps: exponents are twice as long there, and more steps long.

What this gains, and how often a lower order would have been better on data that is not Gaussian, is measured in
docs/numerics.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...schedule import Node

__all__ = ["last_order"]

WIDTHS = np.geomspace(0.05, 2, 12)  # s, in units of the data's standard deviation
LOWEST, LOWEST_WITH_NOISE = 1, -2  # at 1 - n the n steps before the last one are of order 1 as well
ROWS = 64  # of noise at a time


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
    drawing = any(stage.noise for stage in plan(highest))
    lowest = LOWEST_WITH_NOISE if drawing else LOWEST
    plans = [plan(order) for order in range(lowest, highest + 1)]
    own = next((i for i, stages in enumerate(zip(*plans, strict=True)) if any(s != stages[0] for s in stages)), None)
    if own is None:
        return highest
    alpha, sigma = np.array([node[1:] for node in (*(stage.node for stage in plans[0]), end)]).T[..., None]
    variances = (WIDTHS * data_scale) ** 2
    spread = np.sqrt(alpha**2 * variances + sigma**2)  # of x at each stage and at the end
    gain = alpha * variances / spread**2
    # Row 0 is the run. Row 1 is one whose states are the solution's until the last steps; or, as the solution cannot be
    # told apart from noise, further rows are what the noise of each stage has become.
    rows = ROWS + len(plans[0]) - own if drawing else 2
    x: Any = np.zeros((rows, len(WIDTHS))).view(_Numbers)
    x[: 1 if drawing else 2] = spread[0]
    state: Any = None
    used = 1
    for i, stage in enumerate(plans[0][:own]):
        x, state = stage(state, x, x * gain[i])
        if not drawing:
            x[1] = spread[i + 1]
            if state.anchor is not None:
                state.anchor[1] = spread[i]
        elif stage.noise:
            used = _fold([x, *state.past]) if used == ROWS else used
            x[used] += stage.noise
            used += 1
    chosen: int = lowest
    least: Any = np.inf
    for order, stages in enumerate(plans, start=lowest):
        last, memory = x, state
        for i, stage in enumerate(stages[own:]):
            last, memory = stage(memory, last, last * gain[own + i])
            if stage.noise:
                last[used + i] += stage.noise
        error: Any = np.abs(last - spread[-1])
        if drawing:
            error = np.linalg.norm(np.linalg.norm(last, axis=0) - spread[-1])
        if not np.all(error <= least):
            break
        chosen, least = order, error
    return chosen


def _fold(arrays: Sequence[NDArray[np.float64]]) -> int:
    """Put the same products, summed over rows, into as many rows as there are arrays."""
    triangle: Any = np.linalg.qr(np.stack(arrays, axis=-1).swapaxes(0, 1), "r")  # (widths, rows, arrays)
    for array, column in zip(arrays, np.moveaxis(triangle, -1, 0), strict=True):
        array[:] = 0
        array[: len(arrays)] = column.T
    return len(arrays)
