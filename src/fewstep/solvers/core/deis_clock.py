"""The clock of DEIS: what "tab" extrapolates in, and the grid that is even in its square root.

It is the schedule's own, with one exception. EDM's is sigma, in which tAB would be rho-AB and the grid too fine among
noisy levels. As in diff-sampler, the clock of the equivalent VP process is used,

    log(1 + sigma^2) = beta_d t^2 / 2 + beta_0 t,   fitted to sigma_min at t = 1e-3 and sigma_max at t = 1

There the range 0.002 ... 80 is fixed, here it is the schedule's; and where beta_d < 0 would come out, for a sigma_min
above sqrt(log(1 + sigma_max^2) / 1000), the clock could turn back: then beta_d = 0, and only sigma_max is fitted.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...grid import Grid, time_quadratic
from ...grid.base import between, evenly, time_ends
from ...schedule import EDM, Discrete, Node, Schedule

__all__ = ["Array", "clock", "clock_quadratic", "corners"]

Array = NDArray[np.float64]
START = 1e-3  # where diff-sampler puts sigma_min; VPLinear's t_min


class _Growth(NamedTuple):
    """log(1 + sigma^2) = beta_d t^2 / 2 + beta_0 t, and back."""

    beta_d: float
    beta_0: float

    @classmethod
    def of(cls, schedule: EDM) -> _Growth:
        low, high = math.log1p(schedule.sigma_min**2), math.log1p(schedule.sigma_max**2)
        beta_d = max(0.0, 2 * (high - low / START) / (1 - START))
        return cls(beta_d, high - beta_d / 2)

    def sigma(self, time: float) -> float:
        return math.sqrt(math.expm1(time * (self.beta_d * time / 2 + self.beta_0)))

    def time(self, growth: Array) -> Array:
        root = np.sqrt(self.beta_0**2 + 2 * self.beta_d * growth)
        # The root of the quadratic that does not cancel.
        return 2 * growth / (self.beta_0 + root) if self.beta_0 > 0 else (root - self.beta_0) / self.beta_d


def clock(schedule: Schedule, lam: Array) -> Array:
    """The times at which the half log-SNR is `lam`."""
    growth = np.logaddexp(0, -2 * lam)  # log(1 + n^2), n = sigma / alpha
    if isinstance(schedule, EDM):
        return _Growth.of(schedule).time(growth)
    if isinstance(schedule, Discrete):
        indices = np.arange(-1.0, len(schedule.alphas_cumprod))
        return np.asarray(np.interp(growth, _table(schedule), indices), np.float64)
    return np.array([schedule.time_at(each) for each in lam])


def corners(schedule: Schedule, start: float, end: float) -> Array:
    """The lam between two, in their direction, at which the clock has a corner: the entries of a table."""
    if not isinstance(schedule, Discrete):
        return np.array([])
    lam = -np.log(np.expm1(_table(schedule)[1:])) / 2
    inside = np.sort(lam[(lam > min(start, end)) & (lam < max(start, end))])
    return inside if end > start else inside[::-1]


def _table(schedule: Discrete) -> Array:
    """log(1 + n^2) at the indices -1, 0, ...; between them it is linear in the clock."""
    return -np.log([1.0, *schedule.alphas_cumprod])


@Grid
def clock_quadratic(schedule: Schedule, steps: int, *, to_zero: bool | None = None) -> tuple[Node, ...]:
    """Uniform in the square root of DEIS' clock: `time_quadratic`, but on EDM in the time of the VP process."""
    if not isinstance(schedule, EDM):
        return time_quadratic(schedule, steps, to_zero=to_zero)
    growth = _Growth.of(schedule)
    low = math.sqrt(clock(schedule, np.array([-math.log(schedule.sigma_min)]))[0])
    at = evenly(lambda u: growth.sigma((low + u * (1 - low)) ** 2))
    return between(schedule, steps, to_zero, time_ends(schedule), at)
