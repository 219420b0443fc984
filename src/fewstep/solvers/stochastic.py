"""Noise on the way for linear solvers and for EVODiff: a step of the ODE beyond its end, and noise that leads back.

For the step s -> t, h = lam_t - lam_s, the solver's own step leads from s to d, less noisy than t:

    lam_d = lam_s + (1 + eta) h,   that is   n_d = n_t e^(-eta h),   n = sigma / alpha

and noise of variance sigma_t^2 (1 - e^(-2 eta h)) leads back to t: exact in distribution for an exact step and any eta,
as the ODE and the forward process have the same marginals. eta = 0 is the solver, 1 has the noise of the time reversal
of the forward process. Of pure noise, and before sigma = 0, nothing of x is left: alpha_t m, and noise of sigma_t.

What a multistep solver extrapolates is known at the nodes before, between which noise was drawn. It is extrapolated to
t, where the next call is made, and not to d: its rows are made for nodes that lie (1 + eta) times as far from s in lam.
For DPM-Solver++ of one final_order this is `SDEDPMSolverPP`, to rounding. A corrector changes the prediction's part of
a step alone. Only denoised images are extrapolated: predicted noise holds what was drawn, which makes such methods of
first order, and in 10 steps a hundredfold too wide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from ..grid import Grid
from ..schedule import Node, Schedule
from .core.base import LinearStage, Row, Solver, Stage
from .evodiff.trust import TrustingStage
from .tuned import Tuned

# Steps before and after one that its rows are made with: a linear solver's own, and as many as `evodiff` looks back.
LINEAR, TRUSTING = 4, 16
MOST_ETA = 10.0  # where a step forgets all but e^-10 of its noise
Correction = Mapping[str, Any]  # fields of the stage that corrects


@dataclass(frozen=True)
class Stochastic:
    """A solver with noise on the way, `eta` of it: `EVODiff()`, or a linear one in denoised images or single steps.

    With `EVODiff()`, whose weights foresee longer steps, the variance of Gaussian data is kept best: with eta = 0.3 and
    10 steps its standard deviation is right to 4 %, of DPM-Solver++ 2M it is 13 to 20 % too large.

    Cost: that of `solver`. Order of the covariance: that of `solver`, at most 2 if it is a multistep one (measured,
    docs/numerics.md).
    """

    solver: Solver
    eta: float = 1.0

    def __post_init__(self) -> None:
        if not hasattr(self.solver, "plan") or isinstance(self.solver, type):
            raise TypeError(f"solver must be a solver such as EVODiff(); got {self.solver!r}")
        if not 0 <= self.eta <= MOST_ETA:
            raise ValueError(f"eta must lie in [0, {MOST_ETA:g}]; got eta={self.eta!r}")
        if self.eta and isinstance(self.solver, Tuned):
            raise ValueError(
                f"eta={self.eta!r} needs steps of other lengths than those that were measured: draw noise on the way "
                f"with EVODiff(), or none, eta=0, with a tuned plan; got {self.solver!r}"
            )
        if getattr(self.solver, "clock", "lam") != "lam":
            raise ValueError(f'eta needs a solver whose rows are made in lam: give it clock="lam"; got {self.solver!r}')

    @property
    def grid(self) -> Grid:
        return self.solver.grid

    @property
    def calls_per_step(self) -> int:
        return self.solver.calls_per_step

    def plan(self, schedule: Schedule, nodes: Sequence[Node], nfe: int | None = None) -> Sequence[Stage]:
        whole = self.solver.plan(schedule, nodes, nfe)
        if not self.eta:
            return whole
        if nodes[1].nsr > nodes[0].nsr:
            raise ValueError(f"eta={self.eta!r} needs nodes of falling noise; to invert, use eta=0")
        stages: list[Any] = []
        correction: Correction = {}
        trusting = isinstance(whole[0], TrustingStage)
        for i, calls in enumerate(self._calls(nodes, whole)):
            (first, *more), corrected = self._step(schedule, nodes, i, calls, trusting)
            first = first._replace(**correction)
            if isinstance(first, LinearStage) and self.calls_per_step == 1 and stages:
                longest = max(len(row.weights) for row in (first.move, first.correct) if row)
                stages[-1] = stages[-1]._replace(keep=range(longest - 1))
            stages += [first, *more]
            correction = corrected
        return stages

    def _calls(self, nodes: Sequence[Node], stages: Sequence[Stage]) -> list[int]:
        """The calls of each step: one, or all up to the one that holds x no longer."""
        found, count = [], 0
        for stage in stages:
            if not isinstance(stage, LinearStage | TrustingStage) or stage.noise:
                raise ValueError(f"eta needs EVODiff() or a linear solver that draws no noise of its own; got {self!r}")
            count += 1
            if self.calls_per_step == 1 or not (isinstance(stage, LinearStage) and stage.hold):
                found.append(count)
                count = 0
        if len(found) != len(nodes) - 1:
            raise ValueError(f"eta needs a solver of one call a step, or of single steps; got {self!r}")
        return found

    def _step(
        self, schedule: Schedule, nodes: Sequence[Node], i: int, calls: int, trusting: bool
    ) -> tuple[Sequence[Any], Correction]:
        """The stages of the step from node i, and what the next call corrects of it."""
        s, t = nodes[i : i + 2]
        if not s.alpha or not t.sigma:
            limit = TrustingStage(s, 0.0, t.alpha) if trusting else LinearStage(s, Row(0.0, (t.alpha,)))
            return [limit._replace(noise=t.sigma)], {}
        h = t.lam - s.lam

        def at(node: Node, alpha: float = 1.0) -> Node:
            """As far from s as `node`, (1 + eta) times."""
            lam = s.lam + (1 + self.eta) * (node.lam - s.lam)
            return Node(node.time, alpha, alpha * math.exp(-lam))

        single, memory = self.calls_per_step > 1, TRUSTING if trusting else LINEAR
        past = [node for node in nodes[max(0, i - memory) : i] if node.alpha and not single]
        later = [at(node) if node.sigma else node for node in nodes[i + 2 : i + 2 + memory]]
        down = at(t, t.alpha)
        plan: list[Any] = list(self.solver.plan(schedule, (*map(at, past), s, down, *later)))
        noise = t.sigma * math.sqrt(-math.expm1(-2 * self.eta * h))
        if single:
            made = plan[:calls]
            if any(stage.hold != (stage is not made[-1]) for stage in made):  # a step that the budget cuts
                made = list(self.solver.plan(schedule, (s, down), calls))
            return [*made[:-1], made[-1]._replace(noise=noise)], {}
        stage, (after, *_) = plan[len(past)], (*plan[len(past) + 1 :], None)
        if trusting:
            corrected = {} if after is None else {"gain": after.gain, "correct": after.correct}
            return [stage._replace(gain=0.0, correct=None, noise=noise)], corrected
        if stage.field != "data" and len(stage.move.weights) > 1:
            raise ValueError(
                f"eta needs a solver that extrapolates denoised images, or single steps, such as DPMSolverPP or UniPC; "
                f"got {self!r}, which extrapolates {stage.field}"
            )
        corrected = {}
        if after is not None and after.correct is not None:
            before = (0.0, *stage.move.weights) if stage.hold else ()
            change = zip_longest(after.correct.weights, before, fillvalue=0.0)
            corrected = {"correct": Row(1.0, tuple(new - old for new, old in change))}
        return [LinearStage(s, stage.move, stage.field, noise=noise)], corrected
