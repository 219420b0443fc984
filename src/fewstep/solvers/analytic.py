"""Analytic-DPM: ancestral steps whose noise has the best variance, known from one statistic of the model.

For the step s -> t to less noise, D the denoised image, z unit noise and v(s) the variance of a pixel of x_0 given x:

    x_t = alpha_t D + sqrt(sigma_t^2 - n^2) (x - alpha_s D) / sigma_s + sqrt(n^2 + k^2 v(s)) z
    n^2 = eta^2 (sigma_t / sigma_s)^2 (sigma_s^2 - (alpha_s / alpha_t)^2 sigma_t^2)
    k   = alpha_t - alpha_s sqrt(sigma_t^2 - n^2) / sigma_s,    the weight of x_0 in the mean
    v   = sigma_s^2 / alpha_s^2 (1 - Gamma_s), clipped to [0, most_variance]

Gamma = E |noise predicted|^2 / d. eta = 1 is Analytic-DPM (n^2 the posterior variance of DDPM), eta = 0 Analytic-DDIM.
The kernel q(x_t | x, x_0) of DDIM is averaged over x_0 given x; its mean and the trace of its covariance are exact, so
that data N(mean, c I) are sampled exactly in any number of steps.

A step to sigma = 0 returns D, one from alpha = 0 takes v at the noisy end of the table, where x says nothing of x_0.

Bao, Li, Zhu & Zhang, Analytic-DPM (2022): Theorems 1 and 2 (most_variance = 1 bounds data in [-1, 1]) and, in the
authors' code, the bound on the step into the last noisy node. The code clamps D to [-1, 1]: `fewstep.clip` does that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from ..grid import Grid, uniform
from ..schedule import Node, Schedule
from ..statistics import Gamma
from .core.base import LinearStage, Row, spend

GREY_LEVEL = 2 / 255  # of images in [-1, 1]
MEAN_SIZE = math.sqrt(2 / math.pi)  # E |z| of unit noise


@dataclass(frozen=True)
class AnalyticDPM:
    """Analytic-DPM (eta = 1) and Analytic-DDIM (eta = 0), on the model's Gamma (`estimate_gamma`). Stochastic.

    `last_grey_levels`: if given, the noise of the step into the last noisy node moves a pixel by no more than this many
        of 256 grey levels on average; 2 in the authors' CIFAR-10 runs (`clip_pixel`), for runs that close at sigma = 0.
    `most_variance`: the bound on v: 1 for data in [-1, 1], inf for none.

    Cost: 1 call per step. Weak order: 1 (measured, docs/numerics.md).
    """

    statistics: Gamma
    eta: float = 1.0
    last_grey_levels: float | None = None
    most_variance: float = 1.0
    grid: ClassVar[Grid] = uniform
    calls_per_step: ClassVar[int] = 1

    def __post_init__(self) -> None:
        Gamma.expect(self.statistics)
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be in [0, 1]; got {self.eta!r}")
        if self.last_grey_levels is not None and not self.last_grey_levels >= 0:
            raise ValueError(f"last_grey_levels must be None or at least 0; got {self.last_grey_levels!r}")
        if not self.most_variance >= 0:
            raise ValueError(f"most_variance must be at least 0; got {self.most_variance!r}")

    def plan(self, schedule: Schedule, nodes: Sequence[Node], nfe: int | None = None) -> list[LinearStage]:
        if nodes[1].nsr > nodes[0].nsr:
            raise ValueError(
                "AnalyticDPM needs nodes of falling noise, which its steps take away and add; "
                "to invert, use a deterministic solver such as UniPC"
            )
        self.statistics.check(schedule, nodes)
        last = len(nodes) - 2 - (nodes[-1].sigma == 0)  # the step into the last noisy node
        most = math.inf if self.last_grey_levels is None else self.last_grey_levels * GREY_LEVEL / MEAN_SIZE
        stages = []
        for i, (s, t) in enumerate(pairwise(nodes)):
            row, noise = self._step(s, t)
            stages.append(LinearStage(s, row, noise=min(noise, most) if i == last else noise))
        return spend(stages, nfe, len(nodes) - 1)

    def _step(self, s: Node, t: Node) -> tuple[Row, float]:
        added = s.sigma**2 - (s.alpha / t.alpha * t.sigma) ** 2  # between t and s, as seen at s
        fresh = self.eta**2 * (t.sigma / s.sigma) ** 2 * added
        scale = math.sqrt(max(t.sigma**2 - fresh, 0.0)) / s.sigma
        weight = t.alpha - s.alpha * scale
        variance = min(max(self.statistics.posterior_variance(s.lam), 0.0), self.most_variance)
        noise = math.sqrt(fresh + weight**2 * variance) if t.sigma else 0.0
        return Row(scale, (weight,)), noise
