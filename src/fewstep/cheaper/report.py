"""How far a cheaper model is off, by noise level, on the path of the one that it stands in for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..prediction import Denoiser
from ..sampling import sample, unit_noise
from ..schedule import Schedule
from ..solvers import EVODiff, Solver
from .network import network_of, weight_bytes

__all__ = ["Difference", "Level", "difference"]

M = TypeVar("M")


class Level(NamedTuple):
    """The root mean square of the answers' difference at a noise level, sigma / alpha, and over that of the answer."""

    nsr: float
    rmse: float
    relative: float


class Difference(NamedTuple):
    """By level, at the end of a whole run of either, and the share of the weights' bytes."""

    levels: tuple[Level, ...]
    run: float
    memory: float

    def __str__(self) -> str:
        lines = [f"{nsr:10.4g} {rmse:10.3g} {relative:10.3g}" for nsr, rmse, relative in self.levels]
        head = f"{'sigma/alpha':>10} {'RMSE':>10} {'relative':>10}"
        return "\n".join(
            [head, *lines, f"at the end of the run {self.run:.3g}; {self.memory:.2f} of the weights' bytes"]
        )


def difference(
    model: M,
    cheaper: M,
    *,
    seeds: range = range(8),
    nfe: int = 10,
    solver: Solver | None = None,
    of: Callable[[Any], Denoiser] = lambda model: model,
) -> Difference:
    """Compare `cheaper` with `model`, which has shape and schedule, at the states of a run of the latter.

    `of` makes the denoiser of a model for these seeds, such as `lambda model: model.conditioned(labels, guidance)`. Of
    a model to itself all is 0, where its answers are, too. TypeError for what has no shape, schedule or network.
    """
    known: Any = model
    for name in ("shape", "schedule"):
        if not hasattr(known, name):
            raise TypeError(f"model must have shape, schedule and network; {type(model).__name__} has no {name}")
    schedule: Schedule = known.schedule
    solver = EVODiff() if solver is None else solver
    networks = [network_of(each, compiled=True) for each in (model, cheaper)]
    weight = next(networks[0].parameters(), torch.zeros(()))
    noise = unit_noise(seeds, known.shape, device=weight.device)
    exact, other = of(model), of(cheaper)
    levels: list[Level] = []

    def both(x: Tensor, t: float) -> Tensor:
        answer = exact(x, t)
        off = _rms(other(x, t) - answer)
        levels.append(Level(schedule.node(t).nsr, off, _over(off, _rms(answer))))
        return answer

    ends = [sample(each, noise, nfe=nfe, solver=solver, schedule=schedule) for each in (both, other)]
    whole, less = (weight_bytes(each) for each in networks)
    memory = _over(less, whole) if less != whole else 1.0
    return Difference(tuple(levels), _rms(ends[1] - ends[0]), memory)


def _over(part: float, whole: float) -> float:
    return part / whole if whole else math.inf if part else 0.0


def _rms(x: Tensor) -> float:
    return float(torch.sqrt(x.double().square().mean()))
