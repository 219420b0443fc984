"""What a problem of the bench is: a denoiser on any schedule, noise that belongs to seeds, and where it leads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fewstep.bench.images import resized
from fewstep.bench.metrics import Moments
from fewstep.grid import GridFunction
from fewstep.prediction import Denoiser, as_denoiser
from fewstep.sampling import integrate, sample, unit_noise
from fewstep.schedule import Node, Schedule
from fewstep.solvers import Solver, UniPC

__all__ = ["FAR", "Law", "Problem", "batches", "ends", "pooled", "solved"]

FAR = 8.0  # half log-SNR beyond which one step is as good as many: a noise, or a signal, of 3e-4
POOLED_SIDE = 8
BATCH = 64


class Law(Protocol):
    """A distribution of clean images, or a network that stands for one."""

    def denoised(self, x: Tensor, node: Node) -> Tensor:
        """The mean of x_0 given x = alpha x_0 + sigma noise, both (B, *); finite also at alpha = 0."""


def pooled(images: Tensor) -> Tensor:
    """Images (N, C, H, H) as features (N, 64 C): means over squares of pixels, 8 x 8 of them."""
    return resized(images, POOLED_SIDE).flatten(1)


@dataclass(frozen=True)
class Problem:
    """A law with all that is measured on it. Image i belongs to seed first_seed + i, in any batch.

    law: of a batch, given its seeds, which choose the classes.
    steps: of UniPC-3, evenly in log-SNR, that the converged solution takes; None if the law has it in closed form.
    samples, many: how many images give a distance to the solution, and how many one between sets.
    features, targets: the images' features (N, k), and the moments of the features that distances are to, by name.
    nearest: of images, which training image each of them has become; None where that says nothing.
    images: training images, where DPM-Solver-v3 is given its statistics.
    fingerprint: of the network, where there is one.
    """

    name: str
    shape: tuple[int, ...]
    first_seed: int
    law: Callable[[Sequence[int]], Any]
    steps: int | None
    samples: int = 64
    many: int = 1000
    dtype: torch.dtype = torch.float64
    features: Callable[[Tensor], Tensor] = pooled
    targets: Mapping[str, Callable[[], Moments]] = field(default_factory=dict)
    nearest: Callable[[Tensor], Tensor] | None = None
    images: Tensor | None = None
    fingerprint: str | None = None

    def seeds(self, samples: int) -> range:
        return range(self.first_seed, self.first_seed + samples)

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Unit Gaussian, (len(seeds), *shape)."""
        return unit_noise(seeds, self.shape, dtype=self.dtype)

    def denoiser(self, schedule: Schedule, seeds: Sequence[int]) -> Denoiser:
        """For a batch that starts from `noise(seeds)`."""
        law: Law = self.law(seeds)
        return as_denoiser(lambda x, t: law.denoised(x, schedule.node(t)), "sample", schedule)

    def drawn(
        self, schedule: Schedule, seeds: Sequence[int], solver: Solver, nfe: int, grid: GridFunction | None = None
    ) -> Tensor:
        """What a solver makes of the noise of `seeds`, on its own grid if not given one."""
        denoiser, noise = self.denoiser(schedule, seeds), self.noise(seeds)
        return sample(denoiser, noise, nfe=nfe, solver=solver, schedule=schedule, grid=grid)

    def solution(self, schedule: Schedule, seeds: Sequence[int]) -> Tensor:
        """Where the ODE carries the noise of `seeds` from t_max to t_min, whichever ends a solver's grid has."""
        s, t = ends(schedule)
        x = self.noise(seeds) * s.sigma
        if self.steps is None:
            exact: Tensor = self.law(seeds).solution(x, s, t)
            return exact
        return solved(self.denoiser(schedule, seeds), schedule, x, s, t, self.steps)


def batches(seeds: range) -> Iterator[range]:
    return (seeds[first : first + BATCH] for first in range(0, len(seeds), BATCH))


def ends(schedule: Schedule) -> tuple[Node, Node]:
    return schedule.node(schedule.t_max), schedule.node(schedule.t_min)


def solved(denoiser: Denoiser, schedule: Schedule, x: Tensor, s: Node, t: Node, steps: int, far: float = FAR) -> Tensor:
    """Where the ODE carries x from s to t: UniPC-3 in `steps` steps, even ones in log-SNR between -far and far."""
    inner = np.linspace(max(s.lam, -far), min(t.lam, far), steps + 1 - (s.lam < -far) - (t.lam > far))
    lams = inner[1 if s.lam >= -far else 0 : -1 if t.lam <= far else None]
    nodes = [s, *(schedule.node(schedule.time_at(float(lam))) for lam in lams), t]
    return integrate(denoiser, x, nodes, solver=UniPC(3, final_order=3), schedule=schedule)
