"""Solvers side by side: the same noise, several budgets, the distance of each to the converged solution."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..grid import GridFunction
from ..prediction import Denoiser
from ..sampling import sample
from ..schedule import Schedule
from ..solvers import Solver, UniPC
from .metrics import rmse

__all__ = ["CONVERGED_NFE", "Result", "compare", "converged"]

# At 128 calls UniPC-3 is within 0.002 of its own limit on the packaged model: tests/bench/test_compare.py.
CONVERGED_NFE = 128
CONVERGED_SOLVER = UniPC(order=3)


@dataclass(frozen=True)
class Result:
    """One solver at one budget. `rmse` is per pixel, over all images; `calls` were counted, not computed."""

    solver: str
    nfe: int
    images: Tensor
    rmse: float
    seconds: float
    calls: int


class Counted:
    """A denoiser that counts its calls."""

    def __init__(self, denoiser: Denoiser):
        self.denoiser, self.calls = denoiser, 0

    def __call__(self, x: Tensor, t: float) -> Tensor:
        self.calls += 1
        return self.denoiser(x, t)


def converged(
    denoiser: Denoiser,
    noise: Tensor,
    schedule: Schedule,
    nfe: int = CONVERGED_NFE,
    grid: GridFunction | None = None,
) -> Tensor:
    """The solution that every solver tends to from this noise, where `grid` ends, or UniPC-3's own if it is None."""
    return sample(denoiser, noise, nfe=nfe, solver=CONVERGED_SOLVER, schedule=schedule, grid=grid)


def compare(
    denoiser: Denoiser,
    noise: Tensor,
    schedule: Schedule,
    solvers: Mapping[str, Solver],
    budgets: Sequence[int],
    exact: Tensor,
    grid: GridFunction | None = None,
    seeds: Sequence[int] | None = None,
) -> Iterator[Result]:
    """One `Result` for each solver and budget, solver by solver, against the solution `exact`.

    Each solver runs on its recommended grid if `grid` is None; stochastic ones need `seeds`, and do not
    tend to `exact`.
    """
    for name, solver in solvers.items():
        for nfe in budgets:
            counted = Counted(denoiser)
            started = time.perf_counter()
            images = sample(counted, noise, nfe=nfe, solver=solver, schedule=schedule, grid=grid, seeds=seeds)
            seconds = time.perf_counter() - started
            yield Result(name, nfe, images, rmse(images, exact), seconds, counted.calls)
