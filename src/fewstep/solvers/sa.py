"""SA-Solver: Adams' predictor and corrector for the diffusion SDE, or for the ODE where tau = 0.

For the step s -> t let h = lam_t - lam_s, a = 1 + tau^2, and m(lam) the polynomial through the predictions at the last
p nodes; with z a unit Gaussian the variance-controlled SDE of the denoised image is stepped by

    x_t = (sigma_t / sigma_s) e^(-tau^2 h) x + a alpha_t int_(lam_s)^(lam_t) e^(a (lam - lam_t)) m(lam) dlam + noise z
    noise = sigma_t sqrt(1 - e^(-2 tau^2 h))

    predictor, of order p       through m at s and the p - 1 nodes before
    corrector, of order p       through m at the predicted t as well, s and the p - 2 nodes before; with the same z

The integral is a sum of weights times predictions, in closed form by the moments j! psi(j, -a h) of `core.exponential`.
The corrector differs from the predictor in the weights alone, so it is applied as a difference to the x it is given:
the noise that the driver added to that stays in it, and neither noise nor an older state is kept.

`rescale` puts h^2 / 2 for the exact first moment in the steps of order 2 (x_t gains a alpha_t h / 2 times the slope
over the step); then tau = 0 is UniPC with "bh1", whose corrector counts one order lower: p there is p + 1 here.

In noise prediction the integral is - a sigma_t int e^(lam_t - lam) e(lam) dlam, x is scaled by alpha_t / alpha_s, and
noise = tau sigma_t sqrt(e^(2 h) - 1).

Xue et al., SA-Solver (2023), eq. (15) and (18), Appendix A.2.4 and D; orders and modes as in the authors' code (commit
876f3dd): "few_steps" is the default with final_order=1, "more_steps" rescale=False and correct_last=True with it on a
grid that closes at sigma = 0. The last step of a run draws no noise.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import ClassVar, Literal

import numpy as np

from ..grid import Grid, uniform
from ..schedule import Node, Schedule
from .core.base import LinearStage, Row, choice, orders, scale_and_level
from .core.exponential import psi
from .core.last_steps import last_order

STAY = Row(1.0, ())


@dataclass(frozen=True)
class SASolver:
    """SA-Solver with a predictor and a corrector of given orders; `corrector_order=0` leaves the corrector out.

    `tau` is how stochastic the run is, 0 the ODE and 1 the SDE of the forward process, in steps that end in `window`,
    (low, high) in the schedule's clock, and 0 elsewhere; None is everywhere. Published: tau = 1 on (0.2, 0.8) for VP
    models with a clock from 0 to 1 (diffusers asks where a step begins). `mode="PECE"` calls again at each corrected
    point. `correct_last` corrects the step into the last noisy node too, at the price of one more call. `final_order`
    as in `DPMSolverPP`; with tau > 0 None may give order 1 to as many as the last four steps (`core.last_steps`).

    Cost: 1 call per step, 2 in "PECE"; other budgets than that leave out second calls, the last ones first.
    Order: docs/numerics.md; of the covariance 2 with tau > 0, whatever the orders beyond 2.
    """

    predictor_order: Literal[1, 2, 3, 4] = 3
    corrector_order: Literal[0, 1, 2, 3, 4] = 4
    tau: float = 1.0
    window: tuple[float, float] | None = None
    mode: Literal["PEC", "PECE"] = "PEC"
    rescale: bool = True
    correct_last: bool = False
    field: Literal["data", "noise"] = "data"
    final_order: int | None = None
    grid: ClassVar[Grid] = uniform

    def __post_init__(self) -> None:
        choice("predictor_order", self.predictor_order, (1, 2, 3, 4))
        choice("corrector_order", self.corrector_order, (0, 1, 2, 3, 4))
        choice("mode", self.mode, ("PEC", "PECE"))
        choice("field", self.field, ("data", "noise"))
        choice("final_order", self.final_order, (None, 1, 2, 3, 4))
        if not 0 <= self.tau < math.inf:
            raise ValueError(f"tau must be finite and at least 0; got tau={self.tau!r}")
        if self.window is not None and not (len(self.window) == 2 and self.window[0] < self.window[1]):
            raise ValueError(f"window must be (low, high) in the schedule's clock; got window={self.window!r}")
        if not self.corrector_order and (self.mode == "PECE" or self.correct_last):
            raise ValueError('mode="PECE" and correct_last=True need a corrector; got corrector_order=0')

    @property
    def calls_per_step(self) -> int:
        return 2 if self.mode == "PECE" else 1

    def plan(self, schedule: Schedule, nodes: Sequence[Node], nfe: int | None = None) -> list[LinearStage]:
        last = len(nodes) - 1 - (nodes[-1].sigma == 0)  # the last noisy node
        corrected = [i > 0 and self.corrector_order > 0 and math.isfinite(nodes[i - 1].lam) for i in range(last + 1)]
        twice = [i for i, c in enumerate(corrected) if c and (self.correct_last if i == last else self.mode == "PECE")]
        least = len(nodes) - 1
        if nfe is not None:
            if not least <= nfe <= least + len(twice):
                raise ValueError(
                    f"a grid of {least} steps costs this solver {least} to {least + len(twice)} calls; got nfe={nfe!r}"
                )
            twice = twice[: nfe - least]
        highest = max(self.predictor_order, self.corrector_order - 1)
        # The corrector takes back what the predictor added, so that it needs all of its predictions, one node later.
        history = range(highest - (self.corrector_order == 0))
        # The plans that `last_order` compares share their first rows.
        row = functools.cache(functools.partial(self._row, nodes))

        def stages(final_order: int) -> list[LinearStage]:
            order = orders(nodes, highest, final_order)
            stages: list[LinearStage] = []
            predicted = STAY
            for i, node in enumerate(nodes[: last + 1]):
                correct = None
                if corrected[i] and (i < last or i in twice):
                    weights = row(i - 1, min(self.corrector_order, order[i - 1] + 1), True).weights
                    # Newest first: the prediction at this node, which the predictor did not have, and what it had.
                    pairs = zip_longest(weights, (0.0, *predicted.weights), fillvalue=0.0)
                    correct = Row(1.0, tuple(new - old for new, old in pairs))
                if i in twice:
                    stages.append(LinearStage(node, STAY, self.field, correct, keep=history[1:]))
                    correct = None
                if i < least:
                    predicted = row(i, min(self.predictor_order, order[i]), False)
                    noise = self._noise(nodes, i)
                    stages.append(LinearStage(node, predicted, self.field, correct, keep=history, noise=noise))
            return stages

        return stages(self.final_order or last_order(stages, highest, nodes[-1], schedule.data_scale))

    def _tau(self, nodes: Sequence[Node], i: int) -> float:
        """In the step from node i to the next. The last one of a run draws no noise."""
        time = nodes[i + 1].time
        inside = self.window is None or self.window[0] <= time <= self.window[1]
        tau = self.tau if inside and i < len(nodes) - 2 else 0.0
        if tau and nodes[i + 1].lam < nodes[i].lam:
            raise ValueError("noise can only be drawn while the noise level falls: to invert, take tau=0")
        return tau

    def _noise(self, nodes: Sequence[Node], i: int) -> float:
        tau, h, sigma = self._tau(nodes, i), nodes[i + 1].lam - nodes[i].lam, nodes[i + 1].sigma
        if not tau:
            return 0.0
        if self.field == "data":
            return sigma * math.sqrt(-math.expm1(-2 * tau**2 * h))
        return tau * sigma * math.sqrt(math.expm1(2 * h))

    def _row(self, nodes: Sequence[Node], i: int, order: int, corrector: bool) -> Row:
        """The step from node i to the next, predictions newest first."""
        s, t = nodes[i], nodes[i + 1]
        tau = self._tau(nodes, i)
        a = 1 + tau**2
        (scale_s, level_s), (scale_t, level_t) = scale_and_level(self.field, s), scale_and_level(self.field, t)
        if scale_s == 0:
            raise ValueError(f'the noise field has no step away from alpha = 0 (time {s.time!r}): use field="data"')
        h = t.lam - s.lam
        z = -a * h if self.field == "data" else h
        scale = scale_t / scale_s
        if tau and self.field == "data":
            scale *= math.exp(-(tau**2) * h)
        if math.isfinite(h):
            gain = -level_t * math.expm1(z) * (1 if self.field == "data" else a)
        else:
            gain = level_t - scale * level_s
        if order == 1:
            return Row(scale, (gain,))
        points = [(nodes[k].lam - s.lam) / h for k in range(i + corrector, i + corrector - order, -1)]
        if order == 2 and self.rescale:
            slope = a * level_t * (h if self.field == "data" else -h) / 2 / (points[0] - points[1])
            weights = [slope, gain - slope] if corrector else [gain + slope, -slope]
        else:
            weights = [gain * w for w in _means(points, z)]
        return Row(scale, tuple(weights))


def _means(points: Sequence[float], z: float) -> list[float]:
    """int_0^1 e^(z (1 - w)) l_k(w) dw over int_0^1 e^(z (1 - w)) dw, l_k the k-th Lagrange polynomial of the points.

    As int_0^1 e^(z (1 - w)) w^j dw = j! psi(j, z) / z, and (e^z - 1) / z for j = 0.
    """
    moments = [1.0, *(math.factorial(j) * psi(j, z) / math.expm1(z) for j in range(1, len(points)))]
    means = []
    for k, point in enumerate(points):
        others = [*points[:k], *points[k + 1 :]]
        polynomial = np.polynomial.polynomial.polyfromroots(others) / math.prod(point - other for other in others)
        means.append(float(np.dot(polynomial, moments)))
    return means
