"""Grids under the names that front ends give them, as ComfyUI and RES4LYF make them.

They count the entries of a table of n levels, entry n - 1 the noisiest, and all but laplace end at sigma = 0. A
`Discrete` schedule is a table; of the others ComfyUI makes one: a `Flow` has 1,000 entries, entry k at the fraction
(k + 1) / n of its clock, shifted; `EDM` 1,000 that are even in log sigma; VP schedules, which it has as tables only,
are here cut into 1,000 evenly in time. For N steps and i = 0 ... N - 1:

    simple         entries n - 1 - floor(i n / N)
    normal         N points evenly from t_max to t_min; sgm_uniform: N + 1, without the last
    ddim_uniform   entries 1, 1 + s, 1 + 2 s ... upwards, s = floor(n / N)
    beta57         entries round(q(1 - i / N) (n - 1)), q the quantile of Beta(0.5, 0.7)

"t" is the table's index, log sigma on `EDM`, and on a `Flow` sigma itself before its shift: there t_min is the sigma of
entry 0, already shifted once, which `normal` and `sgm_uniform` shift again. Where floors leave ddim_uniform more steps
than were asked for (7 for 6 of a table of 1,000), here s is the least that gives N. Where rounding lets beta57 repeat
an entry ComfyUI takes a step less; here that is an error.

    bong_tangent   sigma / sigma_max falls by two arcs of an arctangent, 1 to 1/2 and 1/2 to 0
    laplace        sigma / alpha = e^(mu - beta sign(1/2 - u) log(1 - 2 |1/2 - u|)), u = 0 ... 1, within the range
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ..schedule import EDM, Discrete, Flow, Node, Schedule
from .base import Grid, lam_ends, need_scipy
from .spacings import sorted_or_error

__all__ = ["beta57", "bong_tangent", "ddim_uniform", "laplace", "normal", "sgm_uniform", "simple"]

ENTRIES = 1000
# Of bong_tangent, in RES4LYF: the place of both pivots among N + 2 points, and the slope of 40 points.
PIVOT, SLOPE, POINTS = 0.6, 0.2, 40
NOT_ZERO = 1e-5  # under laplace's logarithm, in ComfyUI


def _table(schedule: Schedule) -> tuple[int, Callable[[float], Node]]:
    """The number of entries, and the node at a place of the table."""
    if isinstance(schedule, Discrete):
        return len(schedule.alphas_cumprod), schedule.node
    if isinstance(schedule, Flow):
        return ENTRIES, lambda k: schedule.node(schedule.ramp((k + 1) / ENTRIES))
    if isinstance(schedule, EDM):
        noisy, clean = schedule.lam_range
        return ENTRIES, lambda k: schedule.node(schedule.time_at(clean + k / (ENTRIES - 1) * (noisy - clean)))
    return ENTRIES, lambda k: schedule.node(schedule.ramp(k / (ENTRIES - 1)))


def _ended(name: str, schedule: Schedule, nodes: Sequence[Node]) -> tuple[Node, ...]:
    nodes = (*nodes, schedule.node(schedule.t_clean))
    return sorted_or_error(nodes, name, "take fewer steps, or another grid")


@Grid
def simple(schedule: Schedule, steps: int) -> tuple[Node, ...]:
    """Every (n / N)-th entry of the table from the noisiest, then sigma = 0: ComfyUI's "simple", its usual choice."""
    n, at = _table(schedule)
    return _ended("simple", schedule, [at(n - 1 - int(i * (n / steps))) for i in range(steps)])


def _even(name: str, schedule: Schedule, steps: int, points: int) -> tuple[Node, ...]:
    n, at = _table(schedule)
    clean = 0.0
    if isinstance(schedule, Flow):  # where the time of an entry is its sigma, before it is shifted
        clean = ENTRIES * at(0).sigma - 1
    width = n - 1 - clean
    return _ended(name, schedule, [at(n - 1 - i * (width / max(points - 1, 1))) for i in range(steps)])


@Grid
def normal(schedule: Schedule, steps: int) -> tuple[Node, ...]:
    """Even in the model's time from t_max to t_min, then sigma = 0: ComfyUI's "normal"."""
    return _even("normal", schedule, steps, steps)


@Grid
def sgm_uniform(schedule: Schedule, steps: int) -> tuple[Node, ...]:
    """Even in the model's time from t_max, with sigma = 0 in place of t_min: ComfyUI's "sgm_uniform"."""
    return _even("sgm_uniform", schedule, steps, steps + 1)


@Grid
def ddim_uniform(schedule: Schedule, steps: int) -> tuple[Node, ...]:
    """Entries 1, 1 + s, 1 + 2 s ... of the table, noisiest first, then sigma = 0: ComfyUI's "ddim_uniform"."""
    n, at = _table(schedule)
    stride = n // steps if steps <= n else 0
    if stride and len(range(1, n, stride)) != steps:
        stride = -(-(n - 1) // steps)
    if not stride or len(range(1, n, stride)) != steps:
        raise ValueError(f"ddim_uniform has no grid of {steps} steps of {n} entries: take fewer steps")
    return _ended("ddim_uniform", schedule, [at(k) for k in reversed(range(1, n, stride))])


@Grid
def beta57(schedule: Schedule, steps: int, *, a: float = 0.5, b: float = 0.7) -> tuple[Node, ...]:
    """Entries at the quantiles of Beta(0.5, 0.7), then sigma = 0: RES4LYF's "beta57"; 0.6, 0.6 is ComfyUI's "beta".

    `fewstep.grid.beta` is the same without a table, between the schedule's own ends.
    """
    if not (0 < a < math.inf and 0 < b < math.inf):
        raise ValueError(f"a and b must be positive and finite; got a={a!r}, b={b!r}")
    quantile = need_scipy("special", "beta57").betaincinv
    n, at = _table(schedule)
    places = [round(float(quantile(a, b, 1 - i / steps)) * (n - 1)) for i in range(steps)]
    return _ended(f"beta57(a={a!r}, b={b!r})", schedule, [at(k) for k in places])


@Grid
def bong_tangent(schedule: Schedule, steps: int) -> tuple[Node, ...]:
    """Two arcs of an arctangent, down to half of sigma_max and to 0: RES4LYF's "bong_tangent", a grid for flows.

    It is in sigma, on a `Flow` without its shift. ValueError for a schedule that is no flow, and for 1 step, which
    leaves an arc without points.
    """
    if not isinstance(schedule, Flow):
        raise ValueError(f"bong_tangent is a grid for Flow, whose sigma ends at 1; got {schedule!r}: use kl_optimal")
    points = steps + 2
    pivot, slope = int(points * PIVOT), SLOPE * POINTS / points
    middle = int((points * PIVOT + points * PIVOT) / 2)

    def arc(count: int, pivot: int, start: float, end: float) -> list[float]:
        falls = [-math.atan(slope * (i - pivot)) for i in range(count)]
        return [(fall - falls[-1]) / (falls[0] - falls[-1]) * (start - end) + end for fall in falls]

    if middle < 2:
        raise ValueError(f"bong_tangent needs at least 2 steps; got {steps}")
    levels = [*arc(middle, pivot, 1.0, 0.5)[:-1], *arc(points - middle, pivot - middle, 0.5, 0.0)]
    return sorted_or_error(tuple(map(schedule.node, levels)), "bong_tangent", "take fewer steps")


@Grid
def laplace(schedule: Schedule, steps: int, *, mu: float = 0.0, beta: float = 0.5) -> tuple[Node, ...]:
    """Quantiles of a Laplace distribution of log(sigma / alpha), of mean `mu` and scale `beta`, within the range.

    ComfyUI's "laplace", after Hang et al., Improved Noise Schedule for Diffusion Training (2024). It stops at the
    schedule's clean end. ValueError where several quantiles lie beyond an end, as in few steps of a narrow range.
    """
    if not (beta > 0 and math.isfinite(mu)):
        raise ValueError(f"mu must be finite and beta positive; got mu={mu!r}, beta={beta!r}")
    start, end = lam_ends(schedule)

    def node(u: float) -> Node:
        lam = beta * math.copysign(1.0, 0.5 - u) * math.log(1 - 2 * abs(0.5 - u) + NOT_ZERO) - mu
        if lam <= start.lam or lam >= end.lam:
            return start if lam <= start.lam else end
        return schedule.node(schedule.time_at(lam))

    nodes = tuple(node(i / steps) for i in range(steps + 1))
    return sorted_or_error(nodes, f"laplace(mu={mu!r}, beta={beta!r})", "take fewer steps, or a lower beta")
