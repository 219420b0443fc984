"""F-DPM-Solver: DDIM with the prediction of the step's end, called one step ahead of where it is used.

    x^_t = DDIM(x, m_s) to t,   m_t = D(x^_t, t),   x_t = DDIM(x, m_t) to t

The leading error of DDIM, which holds the prediction of the step's start, changes its sign: backward in place of
forward Euler, with the implicit prediction replaced by one lookahead. The call at t serves the lookahead of the next
step, too. The last step takes m_s: to sigma = 0 that is the last denoised prediction, and above it a call at its end
would be one more. So does the first one of a flow, from alpha = 0.

Jiao et al., Are First-Order Diffusion Samplers Really Slower? A Fast Forward-Value Approach (2026), as its abstract
tells it ("the forward-value evaluation via a cheap one-step lookahead predictor"); its code was not at hand, so that
field, ends and first step are our reading.
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
class FDPMSolver:
    """F-DPM-Solver, in data prediction.

    Cost: 1 call per step. Order: 1, with DDIM's error of the other sign (measured, docs/numerics.md).
    """

    grid: ClassVar[Grid] = uniform
    calls_per_step: ClassVar[int] = 1

    def plan(self, schedule: Schedule, nodes: Sequence[Node], nfe: int | None = None) -> list[LinearStage]:
        last = len(nodes) - 2  # the last call, which is not looked ahead for
        stages = []
        correct: Row | None = None
        for i, (s, t) in enumerate(pairwise(nodes)):
            row = euler_row("data", s, t)
            ahead = i < last and math.isfinite(s.lam)
            stages.append(LinearStage(s, row, correct=correct, hold=ahead))
            correct = row if ahead else None
        return spend(stages, nfe, len(nodes) - 1)
