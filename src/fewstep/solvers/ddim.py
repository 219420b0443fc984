"""DDIM: the exact solution for a prediction that stays constant over the step.

    x_t = (sigma_t / sigma_s) x + (alpha_t - alpha_s sigma_t / sigma_s) D(x, s)

Song, Meng & Ermon, Denoising Diffusion Implicit Models (2021), eq. (12) with eta = 0; equal to
DPM-Solver-1, DPM-Solver++(1) and, for alpha = 1, Euler's method in sigma.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from ..grid import Grid, uniform
from ..schedule import Node, Schedule
from .base import LinearStage, euler_row, spend


@dataclass(frozen=True)
class DDIM:
    """The first-order method. Cost: 1 call per step. Order: 1 (measured, docs/numerics.md)."""

    grid: ClassVar[Grid] = uniform
    calls_per_step: ClassVar[int] = 1

    def plan(self, schedule: Schedule, nodes: Sequence[Node], nfe: int | None = None) -> list[LinearStage]:
        return spend([LinearStage(s, euler_row("data", s, t)) for s, t in pairwise(nodes)], nfe, len(nodes) - 1)
