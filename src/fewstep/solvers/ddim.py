"""DDIM: the exact solution for a prediction that stays constant over the step, and DDPM.

    x_t = alpha_t D(x, s) + sqrt(sigma_t^2 - v^2) e(x, s) + v z,   e = (x - alpha_s D) / sigma_s
    v^2 = eta^2 sigma_t^2 (1 - n_t^2 / n_s^2),   n = sigma / alpha

v is `eta` times the standard deviation of x_t given x_s and a known image, z unit noise. eta = 0 is DDIM,
equal to DPM-Solver-1, DPM-Solver++(1) and, for alpha = 1, Euler's method in sigma; eta = 1 is DDPM's ancestral
sampling with the smaller of its two variances, beta-tilde, and SDE-DPM-Solver++(1). The larger, beta, would be right
for images of unit Gaussian noise, is tied to alpha^2 + sigma^2 = 1, and spoils few-step runs: left out.

Song, Meng & Ermon, Denoising Diffusion Implicit Models (2021), eq. (12) and (16); Ho, Jain & Abbeel,
Denoising Diffusion Probabilistic Models (2020), eq. (7).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from ..grid import Grid, uniform
from ..schedule import Node, Schedule
from .core.base import LinearStage, Row, euler_row, spend


@dataclass(frozen=True)
class DDIM:
    """The first-order method; `eta`, from 0 to 1, is the share of noise: 0 is DDIM, 1 DDPM.

    Cost: 1 call per step. Order: 1 (measured, docs/numerics.md).
    """

    eta: float = 0.0
    grid: ClassVar[Grid] = uniform
    calls_per_step: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must lie in [0, 1]; got eta={self.eta!r}")

    def plan(self, schedule: Schedule, nodes: Sequence[Node], nfe: int | None = None) -> list[LinearStage]:
        return spend([self._stage(s, t) for s, t in pairwise(nodes)], nfe, len(nodes) - 1)

    def _stage(self, s: Node, t: Node) -> LinearStage:
        if not self.eta:
            return LinearStage(s, euler_row("data", s, t))
        lost = 1 - (t.nsr / s.nsr) ** 2  # the share of the noise variance that the step removes
        if lost < 0:
            raise ValueError(f"eta={self.eta!r} needs nodes of falling noise; to invert, use eta=0")
        return noisy(s, t, self.eta**2 * lost)


def noisy(s: Node, t: Node, share: float) -> LinearStage:
    """The step s -> t whose noise at t is fresh by this share of its variance, 0 to 1, the rest predicted."""
    scale = t.sigma * math.sqrt(1 - share) / s.sigma
    return LinearStage(s, Row(scale, (t.alpha - scale * s.alpha,)), noise=t.sigma * math.sqrt(share))
