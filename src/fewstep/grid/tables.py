"""Grids that were found by a search and published as tables of noise levels, sigma / alpha.

AYS: Sabour et al., Align Your Steps (2024): the steps that minimise a bound on the divergence that discretising an
SDE costs, for three models. Published for 10 steps.
GITS: Chen et al., On the Trajectory Regularity of ODE-based Diffusion Sampling (2024): the steps that follow a
trajectory's curvature best, by dynamic programming. For Stable Diffusion 1.5 with coefficient 1.20, the rows of
ComfyUI, and for CIFAR-10 the example of its authors' code, 6 steps.

Other counts are read off a row log-linearly, at equal steps of its index (AYS's authors; ComfyUI). The ends are the
schedule's own, which must be much the same. `to_zero=True` puts sigma = 0 in place of the last level, as published;
it costs no step of its own: in this these grids differ from all others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from ..schedule import Discrete, Node, Schedule
from .base import Grid, closes, lam_ends

__all__ = ["ays", "gits"]

# The schedule's ends may differ by this factor from a row's: less than the first or the last step of any.
FIT = 1.5
# Ten digits of a level are this much of an index: closer to one than this, the level is an entry of the table.
SNAP = 1e-6

Rows = Mapping[int, tuple[float, ...]]  # by their number of steps

# Indices 999, 850, 736, 645, 545, 455, 343, 233, 124, 24, 0 of Stable Diffusion's table for "sd15", and 999, 845, 730,
# 587, 443, 310, 193, 116, 53, 13, 0 for "sdxl"; "svd" is Stable Video Diffusion.
AYS = {
    "sd15": (14.6146412293, 6.4745760956, 3.8636745985, 2.6946151520, 1.8841921177, 1.3943805092,
             0.9642583904, 0.6523686016, 0.3977456272, 0.1515232662, 0.0291671582),
    "sdxl": (14.6146412293, 6.3184485287, 3.7681790315, 2.1811480769, 1.3405244945, 0.8620721141,
             0.5550693289, 0.3798540708, 0.2332364134, 0.1114188177, 0.0291671582),
    "svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}  # fmt: skip

GITS_SD15_ENDS = 14.61464119, 0.02916753
GITS_SD15 = (
    (0.803307,),
    (1.56271636, 0.52423614),
    (2.36326075, 0.92192322, 0.36617002),
    (2.84484982, 1.24153244, 0.59516323, 0.25053367),
    (5.85520077, 2.05039096, 0.95350921, 0.45573691, 0.17026083),
    (5.85520077, 2.45070267, 1.24153244, 0.64427125, 0.29807833, 0.09824532),
    (5.85520077, 2.45070267, 1.36964464, 0.803307, 0.45573691, 0.25053367, 0.09824532),
    (5.85520077, 2.84484982, 1.61558151, 0.95350921, 0.59516323, 0.36617002, 0.19894916, 0.09824532),
    (5.85520077, 2.84484982, 1.67050016, 1.08895338, 0.74807048, 0.50118381, 0.32104823, 0.19894916, 0.09824532),
    (5.85520077, 2.95596409, 1.84880662, 1.24153244, 0.83188516, 0.59516323, 0.41087446, 0.27464288, 0.17026083,
     0.09824532),
    (5.85520077, 3.07277966, 1.98035145, 1.36964464, 0.95350921, 0.69515091, 0.50118381, 0.36617002, 0.25053367,
     0.17026083, 0.09824532),
    (6.77309084, 3.46139455, 2.36326075, 1.56271636, 1.08895338, 0.803307, 0.59516323, 0.45573691, 0.34370604,
     0.25053367, 0.17026083, 0.09824532),
    (6.77309084, 3.46139455, 2.45070267, 1.61558151, 1.162866, 0.86115354, 0.64427125, 0.50118381, 0.38853383,
     0.29807833, 0.22545385, 0.17026083, 0.09824532),
    (7.49001646, 4.65472794, 3.07277966, 2.12350607, 1.51179266, 1.08895338, 0.83188516, 0.64427125, 0.50118381,
     0.38853383, 0.29807833, 0.22545385, 0.17026083, 0.09824532),
    (7.49001646, 4.65472794, 3.07277966, 2.12350607, 1.51179266, 1.08895338, 0.83188516, 0.64427125, 0.50118381,
     0.41087446, 0.32104823, 0.25053367, 0.19894916, 0.13792117, 0.09824532),
    (7.49001646, 4.65472794, 3.07277966, 2.12350607, 1.51179266, 1.08895338, 0.83188516, 0.64427125, 0.50118381,
     0.41087446, 0.34370604, 0.27464288, 0.22545385, 0.17026083, 0.13792117, 0.09824532),
    (7.49001646, 4.65472794, 3.07277966, 2.19988537, 1.61558151, 1.20157266, 0.92192322, 0.72133851, 0.57119018,
     0.45573691, 0.36617002, 0.29807833, 0.25053367, 0.19894916, 0.17026083, 0.13792117, 0.09824532),
    (7.49001646, 4.65472794, 3.07277966, 2.19988537, 1.61558151, 1.24153244, 0.95350921, 0.74807048, 0.59516323,
     0.4783645, 0.38853383, 0.32104823, 0.27464288, 0.22545385, 0.19894916, 0.17026083, 0.13792117, 0.09824532),
    (7.49001646, 4.65472794, 3.07277966, 2.19988537, 1.61558151, 1.24153244, 0.95350921, 0.74807048, 0.59516323,
     0.50118381, 0.41087446, 0.34370604, 0.29807833, 0.25053367, 0.22545385, 0.19894916, 0.17026083, 0.13792117,
     0.09824532),
)  # fmt: skip
GITS: dict[str, Rows] = {
    "sd15": {len(row) + 1: (GITS_SD15_ENDS[0], *row, GITS_SD15_ENDS[1]) for row in GITS_SD15},
    "cifar10": {6: (80.0, 10.9836, 3.8811, 1.584, 0.5666, 0.1698, 0.002)},
}


@Grid
def ays(
    schedule: Schedule, steps: int, *, model: Literal["sd15", "sdxl", "svd"] = "sd15", to_zero: bool | None = None
) -> tuple[Node, ...]:
    """Align Your Steps for Stable Diffusion 1.5, XL or Video: a published table of noise levels."""
    if model not in AYS:
        raise ValueError(f"model must be one of {', '.join(map(repr, AYS))}; got {model!r}")
    return _tabled(f"ays(model={model!r})", schedule, steps, {10: AYS[model]}, to_zero)


@Grid
def gits(
    schedule: Schedule, steps: int, *, model: Literal["sd15", "cifar10"] = "sd15", to_zero: bool | None = None
) -> tuple[Node, ...]:
    """GITS for Stable Diffusion 1.5 or for CIFAR-10 on EDM: published tables of noise levels."""
    if model not in GITS:
        raise ValueError(f"model must be one of {', '.join(map(repr, GITS))}; got {model!r}")
    return _tabled(f"gits(model={model!r})", schedule, steps, GITS[model], to_zero)


def _tabled(name: str, schedule: Schedule, steps: int, rows: Rows, to_zero: bool | None) -> tuple[Node, ...]:
    row = rows.get(steps, rows[max(rows)])
    start, end = lam_ends(schedule)
    if max(abs(start.lam + math.log(row[0])), abs(end.lam + math.log(row[-1]))) > math.log(FIT):
        raise ValueError(
            f"{name} leads from sigma / alpha = {row[0]:g} to {row[-1]:g}, but this schedule from {start.nsr:g} to "
            f"{end.nsr:g}: give the model's own schedule, or use log_snr or karras, which fit any"
        )
    lams = (start.lam, *(-math.log(level) for level in row[1:-1]), end.lam)
    inner = [schedule.node(_time(schedule, _read(lams, i / steps))) for i in range(1, steps)]
    last = schedule.node(schedule.t_clean) if closes(schedule.data_std, end, to_zero) else end
    return (start, *inner, last)


def _read(values: tuple[float, ...], fraction: float) -> float:
    """The value at a fraction of the index, linearly between entries."""
    place = fraction * (len(values) - 1)
    below = min(int(place), len(values) - 2)
    return values[below] + (place - below) * (values[below + 1] - values[below])


def _time(schedule: Schedule, lam: float) -> float:
    time = schedule.time_at(lam)
    return float(round(time)) if isinstance(schedule, Discrete) and abs(time - round(time)) < SNAP else time
