"""SciRE-Solver: finite differences of the prediction, divided by phi < 1.

With y = x / scale and u = level / scale of `core.base`'s table the ODE is dy = d du. For the step s -> t, of length h
in u, with d the prediction at s, d_1, d_2 those at the two nodes before (multistep) or at the inner points
u_s + h / 2, or u_s + h / 3 and u_s + 2 h / 3 (single step; r_1, r_2 are these fractions):

    order 1         y_t = y + h d                                                        (DDIM)
    single step 2   y_t = y + h d + h / (2 r_1 phi) (d_1 - d)
    single step 3   y_2 = y + r_2 h d + r_2 h / (2 r_1 phi) (d_1 - d)
                    y_t = y + h d + h / (2 r_2 phi) (d_2 - d)
    multistep 2     y_t = y + h d + h / (2 r phi) (d - d_1),     r = ((lam_s - lam_1) / (lam_t - lam_s))^(1/4)
    multistep 3     y_t = y + h d + h / (2 a phi) (d - d_1) + h / (6 a b phi^2) (d - 2 d_1 + d_2)
                    a = phi (n_s - n_1) / (n_t - n_s),   b = phi / (1 + phi) (n_1 - n_2) / (n_s - n_1)

n = sigma / alpha; "v1" takes the noise (u = n), "v2" the denoised image (u = 1 / n). phi stands for the recursion

    phi_1(m) = sum_(i=1)^m (-1)^(i-1) / i!,   m >= 3:   2/3, 5/8, 19/30, ... -> 1 - 1/e

in which the authors' code takes another m in every step, small near both ends of the run.

Li et al., SciRE-Solver (2023): Algorithms 1 and 2, Corollary 3.1; multistep as in the authors' code (commit 5ebe126).
Since phi does not tend to 1, all of them are of order 1. phi=1 leaves plain differences, and all of order 2: the weight
r_2 / r_1 of single step 3 is as printed (Heun's third-order method has r_2^2 / r_1), and the last term of multistep 3
as coded (with equal steps, 4/5 of what order 3 needs).

On discrete schedules the code reads r_1 and r_2 off another grid inside each step; we take the paper's on all. Its
packing "agile" is a budget that is no multiple of the order here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

from ..grid import Grid, scire_nsr
from ..schedule import Node, Schedule
from .core.base import Field, LinearStage, choice, euler_row, orders, scale_and_level, spend
from .core.exponential import calls_of_steps

FRACTIONS = {1: (), 2: (1 / 2,), 3: (1 / 3, 2 / 3)}  # where a single step of each order calls on its way


@dataclass(frozen=True)
class SciRE:
    """SciRE-V1 and -V2 of order 2 and 3.

    `phi` is the same in all steps if given. "v1" cannot start at alpha = 0: use "v2" for flows.

    Cost: 1 call per step, single step `order` calls; other budgets lower the last of these.
    Order: 1, with phi=1 2 (measured, docs/numerics.md).
    """

    version: Literal["v1", "v2"] = "v1"
    method: Literal["multistep", "singlestep"] = "multistep"
    order: Literal[2, 3] = 2
    phi: float | None = None
    grid: ClassVar[Grid] = scire_nsr

    def __post_init__(self) -> None:
        choice("version", self.version, ("v1", "v2"))
        choice("method", self.method, ("multistep", "singlestep"))
        choice("order", self.order, (2, 3))
        if self.phi is not None and not 0 < self.phi < math.inf:
            raise ValueError(f"phi must be positive and finite, or None for the authors' own; got phi={self.phi!r}")

    @property
    def calls_per_step(self) -> int:
        return 1 if self.method == "multistep" else self.order

    def plan(self, schedule: Schedule, nodes: Sequence[Node], nfe: int | None = None) -> list[LinearStage]:
        field: Field = "noise" if self.version == "v1" else "data"
        stages = []
        if self.method == "multistep":
            noisy = len(nodes) - 1 - (nodes[-1].sigma == 0)
            for i, order in enumerate(orders(nodes, self.order, final_order=1)):
                phi = self.phi or _phi(multistep_index(i + 1, noisy, self.order))
                weights = _weights(nodes[max(i - 2, 0) : i + 2], order, phi)
                row = euler_row(field, nodes[i], nodes[i + 1], weights)
                stages.append(LinearStage(nodes[i], row, field, keep=range(self.order - 1)))
            return spend(stages, nfe, len(nodes) - 1)
        calls = calls_of_steps(nodes, self.order, self.order, nfe)
        noisy = sum(c for c, t in zip(calls, nodes[1:], strict=True) if t.sigma)
        for i, (s, t) in enumerate(pairwise(nodes)):
            phi = self.phi or _phi(singlestep_index(i, noisy // self.order))
            stages += single_step(schedule, field, s, t, phi, FRACTIONS[calls[i]])
        return stages


def single_step(
    schedule: Schedule, field: Field, s: Node, t: Node, phi: float, fractions: Sequence[float]
) -> list[LinearStage]:
    """One step from s to t that also calls at `fractions` of its length in u."""
    points = [s, *(_between(schedule, field, s, t, r) for r in fractions)]
    stages = []
    for i, (here, there) in enumerate(pairwise([*points, t])):
        share = 1 / (2 * fractions[i - 1] * phi) if i else 0.0
        row = euler_row(field, s, there, (share, 1 - share) if i else (1.0,))
        # Beside the newest prediction only d, at s, is used again.
        stages.append(LinearStage(here, row, field, hold=there is not t, keep=(int(i > 0),) * (there is not t)))
    return stages


def _between(schedule: Schedule, field: Field, s: Node, t: Node, fraction: float) -> Node:
    """The node at a fraction of the way in u = level / scale, which is sigma / alpha or its inverse."""
    (scale_s, level_s), (scale_t, level_t) = scale_and_level(field, s), scale_and_level(field, t)
    u = level_s / scale_s + fraction * (level_t / scale_t - level_s / scale_s)
    return schedule.node(schedule.time_at(math.log(u) if field == "data" else -math.log(u)))


def _weights(nodes: Sequence[Node], order: int, phi: float) -> tuple[float, ...]:
    """Of the multistep step between the last two nodes, in units of h, newest prediction first."""
    if order == 1:
        return (1.0,)
    p, s, t = nodes[-3:]
    if order == 2:
        r = ((s.lam - p.lam) / (t.lam - s.lam)) ** 0.25
        share = 1 / (2 * r * phi)
        return 1 + share, -share
    a = phi * (s.nsr - p.nsr) / (t.nsr - s.nsr)
    b = phi / (1 + phi) * (p.nsr - nodes[-4].nsr) / (s.nsr - p.nsr)
    first, second = 1 / (2 * a * phi), 1 / (6 * a * b * phi**2)
    return 1 + first + second, -first - 2 * second, second


def _phi(index: int) -> float:
    """The authors' table: phi_1(index + 3)."""
    m = min(index + 3, 20)  # 1 / 20! is below one unit in the last place
    return math.fsum((-1.0) ** (i - 1) / math.factorial(i) for i in range(1, m + 1))


def multistep_index(step: int, steps: int, order: int) -> int:
    """The place in the table of `step`, from 1 to `steps`; a table of steps + 1 entries."""
    if step < order:
        return 2 * step - 1
    if step < steps // 2:
        return 2 * (step - order) + 1
    return steps if step == steps // 2 else max(2 * (steps - step), 0)


def singlestep_index(step: int, steps: int) -> int:
    """The place in the table of `step`, from 0; a table of `steps` entries, the last of which serves any step over."""
    if step < steps // 2:
        return 2 * step
    index = 2 * (steps - step) - 1
    return index if step > steps // 2 and index > 0 else max(steps - 1, 0)
