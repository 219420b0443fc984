"""FD and RE single steps: the one-step iterations of the EVODiff papers, with a call at a point s_i inside the step.

Both fields solve f(x_t) - f(x_s) = integral of d over kappa, from kappa_s to kappa_t:

    field     d           f(x)        kappa              SNR
    noise     noise       x / alpha   sigma / alpha      1 / kappa^2
    data      denoised    x / sigma   alpha / sigma      kappa^2

For the step s -> t let h = kappa_t - kappa_s, and let s_i lie at kappa_s + h^, where h^ = h / ratio:

    call 1     d_0 = d(x, s),     f(x_i) = f(x) + h^ d_0                                        (DDIM)
    call 2     d_i = d(x_i, s_i), f(x_t) = f(x) + h (gamma d_i + (1 - gamma) d_0) + h^2 / 2 F,
               F = (d_i - d_0) / h^

gamma = 0 is the FD iteration, eq. (3.7) of "Improving Denoising Diffusion with Efficient Conditional Entropy
Reduction" (ICLR 2025 submission), gamma in (0, 1] the RE iteration, eq. (4.1). Coded as f(x) + h ((1 - w) d_0 + w d_i)
with w = gamma + ratio / 2. The recommended intervals:

    ratio     [1, 4 SNR_i / (SNR_s + SNR_i)]                                       Propositions 3.1 and 3.2
    gamma     [SNR_s, max(2 SNR_s, SNR_i)] / (SNR_s + SNR_i)                       Proposition 4.1

The upper end of the ratio depends on s_i, which the ratio itself sets. "high" is the ratio that equals its own upper
end. A larger ratio brings s_i closer to s, where the end is lower, so that there is exactly one, between 1 and 4; it is
found by bisection when the run is planned. For short steps it is 2, the midpoint in kappa. The propositions take noise
to fall; where it rises (inversion) their formulas are used as they are, and an empty interval makes the ratio 1.

The papers do not say which points of the intervals they used. Theorem 4.1 claims second order for RE. But d_i - d_0 is
of the size of h^, so that gamma adds an error gamma h h^ d' to each step: first order, unless gamma vanishes with h.
"low" tends to 1/2 and "high" to 1. DPM-Solver-2 is the case gamma = 1 - ratio / 2 with s_i at the midpoint in log-SNR,
where gamma does vanish. FD in noise with ratio 1 is Heun's method of EDM.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

from ..grid import Grid, uniform
from ..schedule import Node, Schedule
from .core.base import LinearStage, choice, euler_row, scale_and_level

ENDS = ("low", "high")
MOST_RATIO = 4.0  # 4 SNR_i / (SNR_s + SNR_i) at SNR_s = 0
HALVINGS = 60  # of an interval of length 3: below one unit in the last place


@dataclass(frozen=True)
class RESingle:
    """The RE iteration, or with gamma=0 the FD iteration, of two calls.

    `gamma` in [0, 1] and `ratio` of at least 1 are numbers, or an end, "low" or "high", of the recommended interval. At
    ratio 1 the second call is at the end of the step. `field="data"` is for flows, which start at alpha = 0.

    Cost: 2 calls per step; an odd budget takes the last step between noisy nodes at first order, as does every step to
    sigma = 0 or from alpha = 0. Order: 2 for gamma = 0, else 1 (measured, docs/numerics.md).
    """

    field: Literal["noise", "data"] = "noise"
    gamma: float | Literal["low", "high"] = "low"
    ratio: float | Literal["low", "high"] = "high"
    grid: ClassVar[Grid] = uniform
    calls_per_step: ClassVar[int] = 2

    def __post_init__(self) -> None:
        choice("field", self.field, ("noise", "data"))
        if isinstance(self.gamma, str):
            choice("gamma", self.gamma, ENDS)
        elif not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma must be 'low', 'high' or a number in [0, 1]; got {self.gamma!r}")
        if isinstance(self.ratio, str):
            choice("ratio", self.ratio, ENDS)
        elif not 1 <= self.ratio < math.inf:
            raise ValueError(f"ratio must be 'low', 'high' or a finite number of at least 1; got {self.ratio!r}")

    def plan(self, schedule: Schedule, nodes: Sequence[Node], nfe: int | None = None) -> list[LinearStage]:
        steps = list(pairwise(nodes))
        double = [math.isfinite(s.lam) and math.isfinite(t.lam) for s, t in steps]
        full = len(steps) + sum(double)
        if nfe == full - 1 and any(double):
            double[len(double) - 1 - double[::-1].index(True)] = False
        elif nfe not in (None, full):
            raise ValueError(
                f"a grid of {len(steps)} steps costs RESingle {full} calls, or one less with a first-order step; "
                f"got nfe={nfe!r}"
            )
        stages = []
        for (s, t), two in zip(steps, double, strict=True):
            if two:
                inner, weight = self._second(schedule, s, t)
                stages.append(LinearStage(s, euler_row(self.field, s, inner), self.field, hold=True, keep=(0,)))
                move = euler_row(self.field, s, t, (weight, 1 - weight))
                stages.append(LinearStage(inner, move, self.field))
            else:
                stages.append(LinearStage(s, euler_row(self.field, s, t), self.field))
        return stages

    def _second(self, schedule: Schedule, s: Node, t: Node) -> tuple[Node, float]:
        """The node s_i of the second call, and w, the weight of its prediction."""
        power = 2 if self.field == "data" else -2
        start, end = (level / scale for scale, level in (scale_and_level(self.field, n) for n in (s, t)))

        def gain(ratio: float) -> float:
            """SNR_i / SNR_s."""
            return (1 + (end / start - 1) / ratio) ** power

        ratio, gamma = self.ratio, self.gamma
        if isinstance(ratio, str):
            ratio = 1.0 if ratio == "low" else _highest(gain)
        u = gain(ratio)
        if isinstance(gamma, str):
            gamma = (1 if gamma == "low" else max(2, u)) / (1 + u)
        inner = t if ratio == 1 else schedule.node(schedule.time_at(s.lam + math.log(u) / 2))
        return inner, gamma + ratio / 2


def _highest(gain: Callable[[float], float]) -> float:
    """The ratio in [1, 4] that is 4 SNR_i / (SNR_s + SNR_i) of its own s_i; 1 if the interval is empty."""
    low, high = 1.0, MOST_RATIO
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        u = gain(middle)
        low, high = (middle, high) if 4 * u / (1 + u) > middle else (low, middle)
    return low
