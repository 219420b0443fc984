"""A grid that is measured on a model: equal shares of the image's conditional entropy."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol

import numpy as np

from ..schedule import Node, Schedule
from .base import DENSITY_POINTS, Grid, between, evenly, lam_ends

__all__ = ["Posterior", "entropic"]


class Posterior(Protocol):
    """What `fewstep.Gamma` knows of a model: `fewstep.estimate_gamma` measures it."""

    def posterior_variance(self, lam: float) -> float:
        """The variance of an element of x_0 given x, on average, at the half log-SNR `lam`."""


@Grid
def entropic(
    schedule: Schedule,
    steps: int,
    *,
    statistics: Posterior | None = None,
    power: float = 1.0,
    to_zero: bool | None = None,
) -> tuple[Node, ...]:
    """Even in the entropy of x_0 given x, or in the integral of a power of its rate: measured, not chosen.

    In half log-SNR the entropy falls at the rate e^(2 lam) Var(x_0 | x) = 1 - Gamma, per element (Guo, Shamai & Verdu,
    2005), for Gamma of `statistics`, which `fewstep estimate gamma` measures on a model. power = 1 is entropic time:
    Stancevic, Handke & Ambrogioni, Entropic Time Schedulers for Generative Diffusion Models (2025). Lower powers
    spread the steps: errors of second or third order ask for the cube root of a rate.
    """
    if statistics is None or not hasattr(statistics, "posterior_variance"):
        raise TypeError(
            f"statistics must be fewstep.Gamma, measured by fewstep.estimate_gamma; got {type(statistics).__name__}"
        )
    if not 0 < power < math.inf:
        raise ValueError(f"power must be positive and finite; got power={power!r}")
    lams = np.linspace(*schedule.lam_range, DENSITY_POINTS)
    rate = np.array([max(math.exp(2 * lam) * statistics.posterior_variance(lam), 0.0) for lam in lams]) ** power
    share = np.concatenate([[0.0], np.cumsum(rate[1:] + rate[:-1])])
    if not share[-1] > 0:
        raise ValueError(f"{statistics!r} finds nothing to be decided on {schedule!r}: measure it on this range")

    def inner(n: int) -> Iterable[float]:
        return evenly(lambda u: schedule.time_at(float(np.interp(1 - u, share / share[-1], lams))))(n)

    return between(schedule, steps, to_zero, lam_ends(schedule), inner)
