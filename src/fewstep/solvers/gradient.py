"""Gradient estimation: Euler's method with a prediction that is pushed further away from the one before.

    x_t = (scale_t / scale_s) x + (level_t - scale_t / scale_s level_s) (gamma d_0 + (1 - gamma) d_1)

for d_0 the noise, or the velocity, predicted at s and d_1 that predicted a step earlier; with alpha = 1,
x + (sigma_t - sigma_s) d. Weights sum to 1, and do not ask how long the two steps are: gamma = 1 is DDIM, 3/2 is
Adams-Bashforth with equal steps (`IPNDM(2)`), 2 the authors' choice, which extrapolates twice as far. The first step,
and one to sigma = 0, takes d_0 itself.

Permenter & Yuan, Interpreting and Improving Diffusion Models from an Optimization Perspective (2024), Algorithm 2;
`gam` of smalldiffusion, `ge_gamma` of ComfyUI's gradient_estimation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

from ..grid import Grid, uniform
from ..schedule import Node, Schedule
from .core.base import LinearStage, choice, euler_row, spend


@dataclass(frozen=True)
class GradientEstimation:
    """Gradient estimation; `field="velocity"` is for flows, which start at alpha = 0.

    Cost: 1 call per step. Order: 1, but for gamma = 3/2 (measured, docs/numerics.md).
    """

    gamma: float = 2.0
    field: Literal["noise", "velocity"] = "noise"
    grid: ClassVar[Grid] = uniform
    calls_per_step: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 1 <= self.gamma < math.inf:
            raise ValueError(f"gamma must be finite and at least 1; got gamma={self.gamma!r}")
        choice("field", self.field, ("noise", "velocity"))

    def plan(self, schedule: Schedule, nodes: Sequence[Node], nfe: int | None = None) -> list[LinearStage]:
        stages = []
        for i, (s, t) in enumerate(pairwise(nodes)):
            weights = (self.gamma, 1 - self.gamma) if i and t.sigma else (1.0,)
            stages.append(LinearStage(s, euler_row(self.field, s, t, weights), self.field, keep=(0,)))
        return spend(stages, nfe, len(nodes) - 1)
