"""SEEDS: single steps of DPM-Solver++ on the reverse-time SDE, and exponential Heun.

For the step s -> t, h = lam_t - lam_s, z = -(1 + eta) h, and points s_k at r_k h inside it, each point is reached from
s by the row of `core.exponential`, data field, with this z, and by the SDE's own noise up to it:

    x_k = (sigma_k / sigma_s) e^(-eta r_k h) x + sum_j w_kj m_j + sigma_k sqrt(1 - e^(-2 eta r_k h)) z_k

    SEEDS-2   s_1 by order 1, t by order 2 from m_1                               r_1 = 1/2; 1: exponential Heun
    SEEDS-3   s_1 by order 1, s_2 by order 2 from m_1, t by order 2 from m_2      1/3, 2/3

The z_k of a step are those of one Brownian path. As coded, each point is reached from the one before, which carries its
noise along: with f = sigma_k / sigma_j e^(-eta (r_k - r_j) h),

    x_k = f x_j + sum_i (w_ki - f w_ji) m_i + sigma_k sqrt(1 - e^(-2 eta (r_k - r_j) h)) z',   z' fresh

so that nothing but the predictions is kept. eta = 1 is the time reversal of the forward process, 0 the ODE: then
SEEDS-3 and SEEDS-2 are DPM-Solver++ 3S and 2S ("midpoint").

Gonzalez et al., SEEDS: Exponential SDE Solvers for Fast High-Quality Sampling from Diffusion Models (2023); seeds_2,
seeds_3, exp_heun_2_x0 and exp_heun_2_x0_sde of ComfyUI, whose "phi_1" is "midpoint" and "phi_2" is "taylor".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

from ..grid import Grid, uniform
from ..schedule import Node, Schedule
from .core.base import LinearStage, Row, choice, euler_row
from .core.exponential import NEAREST, Variant, calls_of_steps, combine


@dataclass(frozen=True)
class SEEDS:
    """SEEDS-2 and SEEDS-3; `eta` is the amount of noise, 0 the ODE.

    Of SEEDS-2 alone: `r` in [0.01, 1] is where the second call is made, 1 is exponential Heun; `variant` its last row.

    Cost: `order` calls per step. Order: docs/numerics.md.
    """

    order: Literal[2, 3] = 2
    r: float = 0.5
    variant: Variant = "midpoint"
    eta: float = 1.0
    grid: ClassVar[Grid] = uniform

    def __post_init__(self) -> None:
        choice("order", self.order, (2, 3))
        choice("variant", self.variant, ("midpoint", "taylor"))
        if not NEAREST <= self.r <= 1:
            raise ValueError(f"r must lie in [{NEAREST}, 1]: of nearer calls the slope is rounding; got r={self.r!r}")
        if self.order == 3 and (self.r, self.variant) != (0.5, "midpoint"):
            raise ValueError(f"r and variant are options of order 2; got {self!r}")
        if not 0 <= self.eta < math.inf:
            raise ValueError(f"eta must be finite and at least 0; got eta={self.eta!r}")

    @property
    def calls_per_step(self) -> int:
        return self.order

    def plan(self, schedule: Schedule, nodes: Sequence[Node], nfe: int | None = None) -> list[LinearStage]:
        if self.eta and nodes[1].nsr > nodes[0].nsr:
            raise ValueError(f"eta={self.eta!r} needs nodes of falling noise; to invert, use eta=0")
        stages: list[LinearStage] = []
        for (s, t), calls in zip(pairwise(nodes), calls_of_steps(nodes, self.order, self.order, nfe), strict=True):
            fractions = (1.0,) if calls == 1 else (self.r, 1.0) if calls == 2 else (1 / 3, 2 / 3, 1.0)
            stages += self._step(schedule, s, t, fractions)
        return stages

    def _step(self, schedule: Schedule, s: Node, t: Node, fractions: Sequence[float]) -> list[LinearStage]:
        """The step to the last of `fractions`, with a call at s and at each of them but the last."""
        stages: list[LinearStage] = []
        variant: Variant = "taylor" if len(fractions) == 3 else self.variant
        here, before = s, Row(1.0, ())
        for k, fraction in enumerate(fractions):
            there = t if fraction == 1 else schedule.node(schedule.time_at(s.lam + fraction * (t.lam - s.lam)))
            scale, weights = self._row(s, there, fractions[:k], fraction, variant)
            # Relative to the point before; predictions are oldest first up to here.
            factor = scale / before.scale
            padded = (*before.weights, *[0.0] * (len(weights) - len(before.weights)))
            change = [w - factor * old for w, old in zip(weights, padded, strict=True)]
            noise = there.sigma * math.sqrt(-math.expm1(-2 * self.eta * (there.lam - here.lam))) if self.eta else 0.0
            stages.append(LinearStage(here, Row(factor, tuple(reversed(change))), keep=range(k + 1), noise=noise))
            here, before = there, Row(scale, weights)
        stages[-1] = stages[-1]._replace(keep=())
        return stages

    def _row(self, s: Node, t: Node, called: Sequence[float], fraction: float, variant: Variant) -> Row:
        """From s to t, which lies at `fraction` of the step, by the predictions at s and at `called`, oldest first."""
        h = t.lam - s.lam
        if not self.eta and not called:
            return euler_row("data", s, t)
        scale = t.sigma / s.sigma * (math.exp(-self.eta * h) if self.eta else 1.0)
        newest = [c / fraction for c in called[-1:]]
        row = combine(scale, t.alpha, -(1 + self.eta) * h, newest, variant)
        # The third call of a step moves on its own slope alone.
        first, *rest = row.weights
        return Row(scale, (first, *[0.0] * (len(called) - len(rest)), *rest))
