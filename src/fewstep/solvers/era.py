"""ERA-Solver: an implicit Adams step whose unknown prediction is interpolated from predictions chosen by their error.

After the call at node i, from the predictions e_0 ... e_i at the times t_0 ... t_i and from g_i, the guess of e_i:

    error        D = |e_i - g_i|, the root of the mean square over the sample
    bases        j_m = floor((m / k)^(D / scale) i),   m = 1 ... k
    predictor    g_(i+1) = sum_m l_m(t_(i+1)) e_(j_m),   l_m the Lagrange polynomials of the times t_(j_1) ... t_(j_k)
    corrector    e = (9 g_(i+1) + 19 e_i - 5 e_(i-1) + e_(i-2)) / 24
    transfer     x_(i+1) = DDIM(x, e)

A guess that was good takes the newest predictions for bases, one that missed by `scale` spreads them evenly, one
that missed by far reaches for the oldest, which have the least error: models are most exact in noise. The first k - 1
steps are DDIM, and D = scale in the first step after them.

Li et al., ERA-Solver (2023), arXiv 2301.12935: the predictor, eq. (16)-(17) for the bases, the corrector and the
warm-up. No code by the authors is known to us, and these formulas are what descriptions and third-party code agree
on, not compared with the print line by line. What they leave open or we decided:

- D is the mean square's root. The norm, which is given too, would make `scale` depend on the size of the image.
- Where floor() repeats a base (as it does for D -> 0) the next older one that is free is taken.
- Only the last `history` predictions count, e_0 being the oldest of them; the original keeps all.
- The time of the Lagrange polynomials is the schedule's clock; the corrector's weights are those of equal steps
  on any grid.
- A step to sigma = 0 is DDIM, and flows take velocities.

D becomes no number: the bases change at finitely many values of D, known beforehand, and each sample reads the weights
of its own from a table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from ..grid import Grid, uniform
from ..schedule import Node, Schedule
from .core.base import Row, choice, euler_row, in_field, spend
from .core.inner import Inner

CORRECTOR = (9 / 24, 19 / 24, -5 / 24, 1 / 24)  # Adams-Moulton; of the guess and the last three predictions


class Table(NamedTuple):
    """The weights of a guess: row r from the first error that exceeds r of `errors`, for predictions newest first."""

    errors: tuple[float, ...]  # mean squares
    weights: tuple[tuple[float, ...], ...]


class State(NamedTuple):
    """The last predictions, newest first, and what the next one is expected to be."""

    past: tuple[Tensor, ...]
    guess: Tensor | None


class Stage(NamedTuple):
    """A DDIM step `move` with the prediction itself, or with the corrected guess that `table` leads to."""

    node: Node
    field: Literal["noise", "velocity"]
    move: Row
    table: Table | None
    first_error: float  # of the step that has no guess to compare with
    history: int
    noise: float = 0.0

    def __call__(self, state: State | None, x: Tensor, denoised: Tensor) -> tuple[Tensor, State]:
        past, guess = state or State((), None)
        past = (in_field(self.field, x, denoised, self.node), *past)
        kept = past[: self.history - 1]
        if self.table is None:
            return self.move.apply(x, past), State(kept, None)
        if guess is None:
            error = x.new_full((len(x), 1), self.first_error)
        else:
            miss = past[0] - guess
            error = Inner(x, None).dot(miss, miss).reshape(len(x), 1).mul_(len(x) / x.numel())
        guess = _weighted(self.table, error, past)
        mean = Row(CORRECTOR[0], CORRECTOR[1:]).apply(guess, past)
        return self.move.apply(x, (mean,)), State(kept, guess)


def _weighted(table: Table, error: Tensor, past: Sequence[Tensor]) -> Tensor:
    # Small copies, which do not wait for the device.
    errors = torch.tensor(table.errors, dtype=error.dtype).to(error.device, non_blocking=True)
    weights = torch.tensor(table.weights, dtype=error.dtype).to(error.device, non_blocking=True)
    own = weights.index_select(0, (error > errors).sum(1))
    like = (-1, *[1] * (past[0].ndim - 1))
    guess = past[0] * own[:, 0].reshape(like)
    for j in range(1, own.shape[1]):
        guess = guess.addcmul_(past[j], own[:, j].reshape(like))
    return guess


@dataclass(frozen=True)
class ERA:
    """ERA-Solver with `bases` Lagrange bases out of the last `history` predictions.

    `scale` is the error, per element of the noise, at which the bases are spread evenly. `field="velocity"` is for
    flows, which start at alpha = 0.

    Cost: 1 call per step; state: `history` tensors. Order: 2 (measured, docs/numerics.md).
    """

    bases: Literal[3, 4, 5, 6] = 4
    scale: float = 0.2
    history: int = 10
    field: Literal["noise", "velocity"] = "noise"
    grid: ClassVar[Grid] = uniform
    calls_per_step: ClassVar[int] = 1

    def __post_init__(self) -> None:
        choice("bases", self.bases, (3, 4, 5, 6))
        choice("field", self.field, ("noise", "velocity"))
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale must be positive and finite; got scale={self.scale!r}")
        if self.history < self.bases:
            raise ValueError(f"history must hold the {self.bases} bases; got history={self.history!r}")

    def plan(self, schedule: Schedule, nodes: Sequence[Node], nfe: int | None = None) -> list[Stage]:
        stages = []
        for i, s in enumerate(nodes[:-1]):
            past, t = nodes[max(i + 1 - self.history, 0) : i + 1], nodes[i + 1]
            table = self._table([node.time for node in past], t.time) if len(past) >= self.bases and t.sigma else None
            move = euler_row(self.field, s, t)
            stages.append(Stage(s, self.field, move, table, self.scale**2, self.history))
        return spend(stages, nfe, len(nodes) - 1)

    def _table(self, times: Sequence[float], time: float) -> Table:
        """For predictions at `times`, oldest first, and a guess at `time`."""
        if len({*times, time}) <= len(times):
            raise ValueError(
                f"ERA interpolates in time, and two nodes are at the same one (times {[*times, time]!r}): keep the "
                "noise levels between those of the schedule"
            )
        rungs = _ladder(len(times), self.bases)
        rows = []
        for _, chosen in rungs:
            row = [0.0] * len(times)
            for j in chosen:
                others = [times[k] for k in chosen if k != j]
                row[-1 - j] = math.prod((time - other) / (times[j] - other) for other in others)
            rows.append(tuple(row))
        return Table(tuple((self.scale * exponent) ** 2 for exponent, _ in rungs[:-1]), tuple(rows))


def _ladder(count: int, bases: int) -> list[tuple[float, tuple[int, ...]]]:
    """The choices of bases among `count`, oldest first, and the exponent D / scale up to which each is made."""
    newest = count - 1
    # floor((m / k)^p newest) >= j as long as p is at most
    reach = [[math.log(newest / j) / math.log(bases / m) for j in range(1, count)] for m in range(1, bases)]
    rungs: list[tuple[float, tuple[int, ...]]] = []
    for exponent in [*sorted({p for row in reach for p in row}), math.inf]:
        chosen = [newest]
        for m in range(bases - 1, 0, -1):
            place = sum(exponent <= p for p in reach[m - 1])
            chosen.insert(0, max(min(place, chosen[0] - 1), m - 1))
        if rungs and rungs[-1][1] == tuple(chosen):
            rungs.pop()
        rungs.append((exponent, tuple(chosen)))
    return rungs
