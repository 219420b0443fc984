"""Grids as deployed samplers space the clock: the integer timesteps of discrete models, beta quantiles, video flows.

`linspace`, `leading` and `trailing` are what diffusers calls the spacing of timesteps. N steps visit N entries of a
`Discrete` table of T entries, then the end: sigma = 0, or index 0 (its final sigma "sigma_min"):

    linspace   round((N - 1 - i) (T - 1) / (N - 1))         both ends of the table
    leading    (N - 1 - i) floor(T / N) + offset            starts well below the noisiest entry
    trailing   round(T - i T / N) - 1                       starts at the noisiest, leaves out index 0

`drop_last` counts N + 1 entries and leaves out the last, which is how diffusers' multistep solvers (DPM-Solver++,
UniPC, DEIS) read linspace and leading; a grid that ends at index 0 always does, if it would visit index 0 twice.
Trailing at N of 61, 103, 121, ... has an entry -1 too many in diffusers 0.42, where a float range overruns: not here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from ..arguments import integer
from ..schedule import Discrete, Flow, Node, Schedule
from .base import Grid, between, closes, evenly, need_scipy, time_ends

__all__ = ["beta", "leading", "linear_quadratic", "linspace", "sorted_or_error", "trailing"]


@Grid
def linspace(
    schedule: Schedule, steps: int, *, drop_last: bool = False, to_zero: bool | None = None
) -> tuple[Node, ...]:
    """Integer timesteps from one end of a discrete table to the other: diffusers' "linspace"."""

    def times(size: int, count: int) -> Sequence[int]:
        # The only entry of one is the noisy end, where diffusers has index 0.
        return [round((count - 1 - i) * ((size - 1) / (count - 1))) for i in range(count)] if count > 1 else [size - 1]

    return _spaced("linspace", schedule, steps, times, drop_last, to_zero)


@Grid
def leading(
    schedule: Schedule, steps: int, *, offset: int = 0, drop_last: bool = False, to_zero: bool | None = None
) -> tuple[Node, ...]:
    """Multiples of floor(T / N) of a discrete table of T entries, and `offset`, which is 1 for Stable Diffusion."""
    first = integer(offset)
    if first is None or first < 0:
        raise ValueError(f"offset must be an integer of at least 0; got {offset!r}")

    def times(size: int, count: int) -> Sequence[int]:
        return [(count - 1 - i) * (size // count) + first for i in range(count)]

    return _spaced("leading", schedule, steps, times, drop_last, to_zero)


@Grid
def trailing(schedule: Schedule, steps: int, *, to_zero: bool | None = None) -> tuple[Node, ...]:
    """From the noisy end of a discrete table of T entries down by T / N."""

    def times(size: int, count: int) -> Sequence[int]:
        # numpy's range, not i * (size / count): its rounding decides where halves such as 937.5 fall.
        return [int(t) - 1 for t in np.arange(size, 0, -size / count)[:count].round()]

    return _spaced("trailing", schedule, steps, times, False, to_zero)


@Grid
def beta(
    schedule: Schedule, steps: int, *, a: float = 0.6, b: float = 0.6, to_zero: bool | None = None
) -> tuple[Node, ...]:
    """Quantiles of Beta(a, b) on the clock: finer steps near both ends. Lee et al., Beta Sampling (2024).

    ComfyUI does this with a table's index, and rounds it. diffusers does it with sigma / alpha in place of the
    clock, which is this grid on EDM(sigma_min, sigma_max).
    """
    if not (0 < a < math.inf and 0 < b < math.inf):
        raise ValueError(f"a and b must be positive and finite; got a={a!r}, b={b!r}")
    quantile = need_scipy("special", "beta").betaincinv
    at = evenly(lambda u: schedule.ramp(float(quantile(a, b, u))))
    nodes = between(schedule, steps, to_zero, time_ends(schedule), at)
    return sorted_or_error(nodes, f"beta(a={a!r}, b={b!r})", "take fewer steps, or a and b nearer to 1")


@Grid
def linear_quadratic(
    schedule: Schedule, steps: int, *, threshold: float = 0.025, linear_steps: int | None = None
) -> tuple[Node, ...]:
    """sigma falls linearly by `threshold` in the first L steps, then by a parabola with the same slope at its start.

    1 - sigma_i = i threshold / L + (L - threshold N) / (L (N - L)^2) max(0, i - L)^2. The grid of Mochi and
    LTX-Video, whose L is half of N; a `Flow` shifts it as it shifts time-uniform grids, and ends at sigma = 0.
    """
    if not isinstance(schedule, Flow):
        raise ValueError(f"linear_quadratic is a grid for Flow; got {schedule!r}: use time_uniform or time_quadratic")
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must lie between 0 and 1; got threshold={threshold!r}")
    first = max(steps // 2, 1) if linear_steps is None else linear_steps
    if linear_steps is not None and not 1 <= linear_steps < steps:
        raise ValueError(f"linear_steps must lie in 1 ... steps - 1 = {steps - 1}; got linear_steps={linear_steps!r}")

    bend = (first - threshold * steps) / (first * (steps - first) ** 2) if steps > first else 0.0
    levels = [1 - i * threshold / first - bend * max(0, i - first) ** 2 for i in range(1, steps)]
    if not all(s > t for s, t in pairwise((1.0, *levels, 0.0))):
        raise ValueError(
            f"threshold={threshold!r} in {first} of {steps} steps leaves a parabola that turns back: "
            "lower the threshold or raise linear_steps"
        )
    return between(schedule, steps, None, time_ends(schedule), lambda _: map(schedule.ramp, levels))


def _spaced(
    name: str,
    schedule: Schedule,
    steps: int,
    times: Callable[[int, int], Sequence[int]],
    drop_last: bool,
    to_zero: bool | None,
) -> tuple[Node, ...]:
    """The entries `times(size of the table, count)`, then the end."""
    if not isinstance(schedule, Discrete):
        raise ValueError(f"{name} counts the entries of a Discrete table; got {schedule!r}: use time_uniform")
    size, end = len(schedule.alphas_cumprod), schedule.node(schedule.t_min)
    closing = closes(schedule.data_std, end, to_zero)
    visited = times(size, steps + drop_last)[:steps]
    if not closing and visited[-1] == 0:
        visited = times(size, steps + 1)[:steps]
    if visited[0] >= size:
        raise ValueError(f"{name} starts at index {visited[0]} of a table of {size} entries: lower the offset or steps")
    last = schedule.node(schedule.t_clean) if closing else end
    return sorted_or_error((*map(schedule.node, visited), last), name, "take fewer steps, or end at to_zero=True")


def sorted_or_error(nodes: tuple[Node, ...], name: str, remedy: str) -> tuple[Node, ...]:
    """The nodes, unless noise does not fall from each to the next."""
    if not all(s.lam < t.lam for s, t in pairwise(nodes)):
        raise ValueError(f"{name} visits a noise level twice in {len(nodes) - 1} steps: {remedy}")
    return nodes
