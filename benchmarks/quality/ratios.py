"""Ours against the best peer, cell by cell and in geometric means, with bootstrap intervals over samples."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.bench.metrics import interval, resamples

from .results import Measurement

__all__ = [
    "NEGLIGIBLE",
    "OURS",
    "PUBLISHED",
    "Cell",
    "Ratio",
    "against",
    "apart",
    "by_frechet",
    "by_rmse",
    "geometric_mean",
]

OURS, PUBLISHED = "evodiff", "evodiff-published"
RESAMPLES = 1000
# An RMSE, a thousandth of a grey level: the ideal denoiser's runs end at its images exactly, and 0 / 0 says nothing.
NEGLIGIBLE = 1e-5


class Cell(NamedTuple):
    """What was measured of one problem, schedule and budget.

    Ours on its own grid, and on others as far as it was; the peers near the best; the converged solution if there are
    distances; ours and all peers on all grids in the heat, on the first samples only; the peers near the best of the
    field of 2023.
    """

    problem: str
    group: str
    schedule: str
    nfe: int
    ours: Measurement
    elsewhere: list[Measurement]
    peers: list[Measurement]
    floor: Measurement | None
    heat: Sequence[Measurement] = ()
    former: Sequence[Measurement] = ()

    @property
    def published(self) -> list[Measurement]:
        return [peer for peer in self.peers if peer.solver == PUBLISHED]


class Ratio(NamedTuple):
    """Our value over the best peer's in a cell, and the logarithms of the same over resampled samples."""

    cell: Cell
    peer: Measurement
    value: float
    logs: Tensor

    @property
    def interval(self) -> tuple[float, float]:
        return interval(self.value, self.logs)


def by_rmse(cell: Cell) -> Ratio:
    """Against the peer of the least RMSE; its choice is not resampled. What is negligible counts as 1e-5."""
    peer = min(cell.peers, key=lambda each: each.rmse)
    rows = resamples(len(cell.ours.errors), RESAMPLES)
    drawn = (torch.tensor(each.errors, dtype=torch.float64)[rows].square().mean(1).sqrt() for each in (cell.ours, peer))
    ours, theirs = (each.clamp_min(NEGLIGIBLE).log() for each in drawn)
    return Ratio(cell, peer, max(cell.ours.rmse, NEGLIGIBLE) / max(peer.rmse, NEGLIGIBLE), ours - theirs)


def against(cells: Sequence[Cell], solver: str, value: Callable[[Measurement], float | None]) -> list[float]:
    """Ours over one peer in the heats by `value`, in the cells where both have it.

    The peer stays on one grid a schedule, the best for it over these cells, each counting alike, of those with most.
    """
    by_grid: dict[str, dict[str, list[float]]] = {}
    for cell in cells:
        ours = [each for each in cell.heat if each.key == cell.ours.key]
        theirs = [each for each in cell.heat if each.solver == solver]
        for own, peer in product(ours, theirs):
            size = min(len(own.errors), len(peer.errors))  # who did not qualify ran on few
            one, other = (value(dataclasses.replace(each, errors=each.errors[:size])) for each in (own, peer))
            if one is not None and other is not None:
                ratio = max(one, NEGLIGIBLE) / max(other, NEGLIGIBLE)
                by_grid.setdefault(cell.schedule, {}).setdefault(peer.grid, []).append(ratio)

    best = (
        max((len(ratios), statistics.geometric_mean(ratios), ratios) for ratios in grids.values())
        for grids in by_grid.values()
    )
    return [ratio for _, _, ratios in best for ratio in ratios]


def by_frechet(cell: Cell, to: str) -> Ratio:
    """Against the peer of the least Fréchet distance to `to`, where it was measured."""
    peer = min(cell.peers, key=lambda each: each.distances[to].value)
    ours, theirs = (each.distances[to] for each in (cell.ours, peer))
    logs = [torch.tensor(each.resampled, dtype=torch.float64).log() for each in (ours, theirs)]
    return Ratio(cell, peer, ours.value / theirs.value, logs[0] - logs[1])


def geometric_mean(ratios: Sequence[Ratio]) -> tuple[float, float, float]:
    """Over cells, with its interval; samples of the same number are resampled alike in all cells."""
    value = math.exp(sum(math.log(ratio.value) for ratio in ratios) / len(ratios))
    return value, *interval(value, torch.stack([ratio.logs for ratio in ratios]).mean(0))


def apart(ratio: Ratio, astray: float) -> tuple[int, int, float | None]:
    """How many samples of ours and of the peer's err by more than `astray`, and the ratio of RMSE over all others.

    None where these are less than half of all.
    """
    ours, theirs = (torch.tensor(each.errors, dtype=torch.float64) for each in (ratio.cell.ours, ratio.peer))
    kept = (ours <= astray) & (theirs <= astray)
    counts = int((ours > astray).sum()), int((theirs > astray).sum())
    if 2 * kept.sum() < len(kept):
        return *counts, None
    left = [max(float(each[kept].square().mean().sqrt()), NEGLIGIBLE) for each in (ours, theirs)]
    return *counts, left[0] / left[1]
