"""Steps in the coordinates of DPM-Solver-v3: what `solver` and `re_v3` share, in the terms of the former.

A step is affine in f at its nodes, element by element, by numbers if all elements share the statistics, else tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...schedule import Node, Schedule
from ...statistics import EMS
from ..core.base import LinearStage, Stage, State, euler_row
from .ems_integrals import Array, Integrals, Quadrature, integrals

__all__ = ["Affine", "EMSStage", "Steps"]

Coefficient = float | Tensor  # one for all elements of x, or one each


class Affine(NamedTuple):
    """scale * anchor + sum(weights[j] * past[j]) + offset, element by element; newest first."""

    scale: Coefficient
    weights: tuple[Coefficient, ...]
    offset: Coefficient

    def apply(self, anchor: Tensor, past: Sequence[Tensor]) -> Tensor:
        if len(past) < len(self.weights):
            raise ValueError(
                f"this stage needs the last {len(self.weights)} predictions but was given {len(past)}: "
                "plan again from the node you enter at"
            )
        out = anchor * _like(self.scale, anchor)
        for weight, prediction in zip(self.weights, past, strict=False):
            out = out.add_(prediction * _like(weight, anchor))
        return out.add_(_like(self.offset, anchor))


class EMSStage(NamedTuple):
    """As `LinearStage`, on f = tilt * x - denoised."""

    node: Node
    tilt: Coefficient  # (1 - l) / alpha
    move: Affine
    correct: Affine | None
    hold: bool
    keep: int
    noise: float = 0.0

    def __call__(self, state: State | None, x: Tensor, denoised: Tensor) -> tuple[Tensor, State]:
        if not isinstance(self.tilt, float) and not _broadcasts(self.tilt.shape, x.shape[1:]):
            raise ValueError(
                f"the statistics are of images of shape {tuple(self.tilt.shape)}; got x of shape {tuple(x.shape)}: "
                "estimate them for images of its shape"
            )
        anchor, past = state or State(None, ())
        past = ((x * _like(self.tilt, x)).sub_(denoised), *past)
        if anchor is None:
            anchor = x
        if self.correct is not None:
            anchor = self.correct.apply(anchor, past)
        return self.move.apply(anchor, past), State(anchor if self.hold else None, past[: self.keep])


def _broadcasts(small: Sequence[int], large: Sequence[int]) -> bool:
    """Whether a tensor of shape `small` can be stretched to `large`."""
    ends = zip(reversed(small), reversed(large), strict=False)
    return len(small) <= len(large) and all(a in (1, b) for a, b in ends)


def _like(coefficient: Coefficient, x: Tensor) -> Coefficient:
    # Copied to an accelerator without waiting for what it has yet to do.
    return coefficient if isinstance(coefficient, float) else coefficient.to(x, non_blocking=True)


class Steps:
    """The steps of a run in v3's coordinates: integrals, and rows from the weights that derivatives give to g."""

    def __init__(
        self, statistics: EMS, schedule: Schedule, nodes: Sequence[Node], moments: int, quadrature: Quadrature
    ):
        statistics.check(schedule, nodes)
        self.nodes = nodes
        self.shape = statistics.l.shape[1:]
        self.lams = [node.lam for node in nodes]
        self.finite = [math.isfinite(lam) for lam in self.lams]
        self.start = self.lams[0] == -math.inf  # where numbers of steps begin
        low, high = statistics.lam_range
        inside = [min(max(lam, low), high) for lam in self.lams if math.isfinite(lam)]
        if len(inside) > 1:
            with np.errstate(over="ignore", invalid="ignore"):
                self.integrals: Integrals = integrals(statistics, inside, moments, quadrature)
            if not all(np.isfinite(column).all() for column in self.integrals):
                largest = max(float(getattr(statistics, name).abs().max()) for name in "ls")
                raise ValueError(
                    f"the statistics are too large to integrate, l or s reaching {largest:g}: "
                    "estimate them from more samples and at more points"
                )
        levels = np.array([np.interp(inside, statistics.lam.numpy(), column) for column in _columns(statistics.l)])
        self.tilts = (1 - levels.T) / np.array([node.alpha for node in nodes if math.isfinite(node.lam)])[:, None]

    def stages(self, move: Callable[[int], Affine], correct: Callable[[int], Affine | None], keep: int) -> list[Stage]:
        """One for each step i. `correct(i)` is asked for the steps that a correction costs no call and changes."""
        stages: list[Stage] = []
        pending: Affine | None = None
        for i, (s, t) in enumerate(pairwise(self.nodes)):
            if not (self.finite[i] and self.finite[i + 1]):
                stages.append(LinearStage(s, euler_row("data", s, t)))
                continue
            held = pending
            moves_on = i + 2 < len(self.nodes) and self.finite[i + 2]
            pending = correct(i) if moves_on else None
            tilt = self._coefficient(self.tilts[i - self.start])
            stages.append(EMSStage(s, tilt, move(i), held, pending is not None, keep))
        return stages

    def derivatives(self, points: Sequence[int], pseudo: bool) -> Array:
        """Row k: the weights of g at the nodes `points` in g^(k) at the first of them."""
        away = np.array([self.lams[j] for j in points]) - self.lams[points[0]]
        if not pseudo:
            inverse = np.linalg.inv(np.vander(away, increasing=True))
            return np.asarray(inverse * [[math.factorial(k)] for k in range(len(points))])
        differences = np.eye(len(points))
        rows = [differences[0]]
        for k in range(1, len(points)):
            differences = (differences[:-1] - differences[1:]) / (away[:-k] - away[k:])[:, None]
            rows.append(math.factorial(k) * differences[0])
        return np.array(rows)

    def affine(self, i: int, points: Sequence[int], derivatives: Array) -> Affine:
        """The step from node i, on the predictions at the nodes `points`, newest first in the result."""
        s, t, n = self.nodes[i], self.nodes[i + 1], i - self.start
        dl, ds, beta, moments, drift = (column[n] for column in self.integrals)
        shrink = t.alpha * np.exp(-dl)
        on_g = np.einsum("kj,ke->je", derivatives, moments[: len(derivatives)])
        offset = -drift
        weights = {}
        for j, weight in zip(points, on_g, strict=True):
            factor, shift = (np.exp(-ds), beta) if j > i else self._back(n, i - j)
            weights[j] = -shrink * weight * factor  # g_j = factor f_j - shift
            offset = offset + weight * shift
        newest_first = tuple(self._coefficient(weights[j]) for j in sorted(weights, reverse=True))
        return Affine(self._coefficient(shrink / s.alpha), newest_first, self._coefficient(shrink * offset))

    def _back(self, n: int, count: int) -> tuple[Array, Array]:
        """e^-S and B, both counted from step n, at the node `count` before it."""
        factor, shift = np.ones_like(self.integrals.ds[n]), np.zeros_like(self.integrals.ds[n])
        for m in range(n - 1, n - 1 - count, -1):
            factor = factor * np.exp(self.integrals.ds[m])
            shift = shift - factor * self.integrals.beta[m]
        return factor, shift

    def _coefficient(self, elements: Array) -> Coefficient:
        return torch.from_numpy(elements.copy()).reshape(self.shape) if self.shape else float(elements[0])


def _columns(values: Tensor) -> Array:
    return values.reshape(len(values), -1).numpy().T
