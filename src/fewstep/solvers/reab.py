"""REAB: Adams-Bashforth after the exact linear part of Gaussian data, of Rosenbrock type.

For data of standard deviation s, with n = sigma / (alpha s) and theta = arctan n, the ODE of x / (alpha s) is linear
but for what a Gaussian does not explain. In z = x / sqrt(alpha^2 s^2 + sigma^2)

    dz = v dtheta,   v = cos theta (x - alpha m) / sigma - sin theta m / s

for the denoised image m: v is what a network of v-prediction is trained on. On N(0, s^2) it is 0. v is extrapolated as
a polynomial in log n through the predictions so far,

    z_t = z_s + sum_k v_k int l_k(log n) dtheta   from theta_s to theta_t

with the integrals to rounding. s = 1 is azula's sampler of that name, whose release 0.11.1 has sigma_s where the
step's end belongs in one factor, and converges at first order only; a step from alpha = 0 is of order 1, and one to
sigma = 0 returns the denoised image.

Azula's documentation of REABSampler, after Zheng et al., DPM-Solver-v3 (2023), without its statistics, and Hochbruck,
Ostermann & Schweitzer, Exponential Rosenbrock-Type Methods (2009).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from torch import Tensor

from ..grid import Grid, focused
from ..schedule import Node, Schedule
from .core.base import choice, orders, spend

X, WEIGHTS = np.polynomial.legendre.leggauss(64)


Past = tuple[Tensor, ...]


class Stage(NamedTuple):
    """scale x + sum_k weights_k v_k, the predictions newest first; the state is those kept."""

    node: Node
    data_std: float
    scale: float
    weights: tuple[float, ...]
    kept: int
    noise: float = 0.0

    def __call__(self, state: Past | None, x: Tensor, denoised: Tensor) -> tuple[Tensor, Past]:
        _, alpha, sigma = self.node
        spread = math.hypot(alpha * self.data_std, sigma)
        # cos theta e - sin theta m / s, both factors of m added up
        v = x * (alpha * self.data_std / (sigma * spread)) - denoised * (spread / (sigma * self.data_std))
        past = (v, *(state or ()))
        out = x * self.scale
        for weight, each in zip(self.weights, past, strict=False):
            out = out.add_(each, alpha=weight)
        return out, past[: self.kept]


@dataclass(frozen=True)
class REAB:
    """REAB of order 1 to 4. `data_std` is the standard deviation of the data; None asks the schedule.

    Cost: 1 call per step. Order: `order` (2 and 3 measured, docs/numerics.md).
    """

    order: Literal[1, 2, 3, 4] = 2
    data_std: float | None = None
    calls_per_step: ClassVar[int] = 1
    grid: ClassVar[Grid] = focused

    def __post_init__(self) -> None:
        choice("order", self.order, (1, 2, 3, 4))
        if self.data_std is not None and not 0 < self.data_std < math.inf:
            raise ValueError(f"data_std must be None or positive and finite; got data_std={self.data_std!r}")

    def plan(self, schedule: Schedule, nodes: Sequence[Node], nfe: int | None = None) -> list[Stage]:
        std = self.data_std or schedule.data_scale
        stages = []
        for i, order in enumerate(orders(nodes, self.order, self.order)):
            s, t = nodes[i : i + 2]
            start, end = (math.hypot(node.alpha * std, node.sigma) for node in (s, t))
            if t.sigma:
                integrals = _integrals([*reversed(nodes[i + 1 - order : i + 1])], t, std)
                scale, weights = end / start, tuple(end * each for each in integrals)
            else:  # the denoised image, in terms of x and v
                scale, weights = t.alpha * s.alpha * (std / start) ** 2, (-t.alpha * s.sigma * std / start,)
            stages.append(Stage(s, std, scale, weights, self.order - 1))
        return spend(stages, nfe, len(nodes) - 1)


def _theta(node: Node, std: float) -> float:
    return math.atan2(node.sigma, node.alpha * std)


def _integrals(used: Sequence[Node], t: Node, std: float) -> tuple[float, ...]:
    """int l_k dtheta from the first of `used`, which are newest first, to t."""
    s = used[0]
    whole = _theta(t, std) - _theta(s, std)
    if len(used) == 1:
        return (whole,)
    # In half log-SNR lam, over which 1 / (2 cosh(lam + log s)) is the density of theta.
    lam = s.lam + (X + 1) / 2 * (t.lam - s.lam)
    mass = WEIGHTS / np.cosh(lam + math.log(std))
    parts = []
    for node in used:
        others = [other for other in used if other is not node]
        basis = np.prod([(lam - other.lam) / (node.lam - other.lam) for other in others], axis=0)
        parts.append(float(mass @ basis))
    return tuple(whole * part / sum(parts) for part in parts)
