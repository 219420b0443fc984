"""UniPC: a predictor and a corrector of one form, at one call per step.

For the step s -> t let h = lam_t - lam_s, z = -h in data prediction (h in noise prediction), m_0 the
prediction at s, m_k that at s_k (k steps earlier), m_t that at the predicted point, and L_t = alpha_t
(sigma_t in noise prediction). With r_k = (lam_{s_k} - lam_s) / h, r_p = 1, D_k = (m_k - m_0) / r_k and D_p = m_t - m_0:

    x_t = DDIM(x, m_0) - L_t B(z) sum_k rho_k D_k
    sum_k r_k^(j-1) rho_k = j! psi(j, z) / B(z),   j = 1 ... p
    predictor: k, j < p        corrector: k, j <= p
    B(z) = z  ("bh1")   or   e^z - 1  ("bh2")

The fixed weight 1/2 replaces the solution of the 1 x 1 systems (predictor of order 2, corrector of order 1) in "bh1"
and "bh2", as in the authors' code. Only there does B matter: elsewhere it cancels. "vary" is the paper's UniPC_v,

    x_t = DDIM(x, m_0) - L_t sum_n psi(n, z) sum_k A_nk D_k,   A = C^-1,   C_kn = r_k^(n-1) / n!

which is the solution of all the systems, the 1 x 1 ones too. (The corrector in the authors' code gives D_p one element
of the wrong row of A and leaves the last row out for the other D_k: first order. Here it is the whole of A.)

The history keeps m_t, evaluated at the predicted point. Without correctors UniPC is UniP.

Zhao et al., UniPC: A Unified Predictor-Corrector Framework (2023), eq. (3)-(5), Algorithms 5-8 and Appendix C.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from ..grid import Grid, uniform
from ..schedule import Node, Schedule
from .core.adams import matching
from .core.base import LinearStage, Row, choice, euler_row, orders, scale_and_level, spend
from .core.exponential import psi
from .core.last_steps import last_order


@dataclass(frozen=True)
class UniPC:
    """UniPC-p with B(z) = z ("bh1") or e^z - 1 ("bh2"), or UniPC_v ("vary").

    The corrector follows each step but the last one into a noisy node, where it would cost an extra call, and those
    listed in `no_corrector` (steps count from 0; `disable_corrector` in diffusers): at high guidance scales it can harm
    in the first steps. `no_corrector="all"` is UniP-p. `final_order` as in `DPMSolverPP`.

    Cost: 1 call per step. Order: docs/numerics.md.
    """

    order: Literal[1, 2, 3, 4] = 3
    variant: Literal["bh1", "bh2", "vary"] = "bh2"
    field: Literal["data", "noise"] = "data"
    final_order: int | None = None
    no_corrector: tuple[int, ...] | Literal["all"] = ()
    grid: ClassVar[Grid] = uniform
    calls_per_step: ClassVar[int] = 1

    def __post_init__(self) -> None:
        choice("order", self.order, (1, 2, 3, 4))
        choice("variant", self.variant, ("bh1", "bh2", "vary"))
        choice("field", self.field, ("data", "noise"))
        choice("final_order", self.final_order, (None, 1, 2, 3, 4))
        listed = self.no_corrector
        if listed != "all" and not (isinstance(listed, tuple) and all(type(i) is int and i >= 0 for i in listed)):
            raise ValueError(f'no_corrector must be "all" or a tuple of steps, the first is 0; got {listed!r}')

    def plan(self, schedule: Schedule, nodes: Sequence[Node], nfe: int | None = None) -> list[LinearStage]:
        # The plans that `last_order` compares share their first rows.
        row = functools.cache(functools.partial(self._row, nodes))

        def stages(final_order: int) -> list[LinearStage]:
            order = orders(nodes, self.order, final_order)
            stages: list[LinearStage] = []
            for i, s in enumerate(nodes[:-1]):
                correct = row(i - 1, order[i - 1], True) if i and stages[-1].hold else None
                # Held, and so corrected, if the next call moves on to a noisy node; from pure noise (infinite
                # length in log-SNR) there is no corrector.
                wanted = self.no_corrector != "all" and i not in self.no_corrector
                hold = wanted and i + 2 < len(nodes) and nodes[i + 2].sigma > 0 and math.isfinite(s.lam)
                move = row(i, order[i], False)
                stages.append(LinearStage(s, move, self.field, correct, hold, keep=range(self.order - 1 + hold)))
            return stages

        final = self.final_order or last_order(stages, self.order, nodes[-1], schedule.data_scale)
        return spend(stages(final), nfe, len(nodes) - 1)

    def _row(self, nodes: Sequence[Node], i: int, order: int, corrector: bool) -> Row:
        """The step from node i to the next; predictions newest first, m_t before m_0 for the corrector."""
        s, t = nodes[i], nodes[i + 1]
        if not math.isfinite(t.lam) or (order == 1 and not corrector):
            return euler_row(self.field, s, t)
        h = t.lam - s.lam
        z = -h if self.field == "data" else h
        b = z if self.variant == "bh1" else math.expm1(z)  # for "vary" any would do
        r = [(nodes[i - k].lam - s.lam) / h for k in range(1, order)] + [1.0] * corrector
        rho = [0.5] if len(r) == 1 and self.variant != "vary" else _solve(r, z, b)
        slopes = [rho_k / r_k for rho_k, r_k in zip(rho, r, strict=True)]
        _, level = scale_and_level(self.field, t)
        first = euler_row(self.field, s, t)
        newest, *older = (first.weights[0] + level * b * sum(slopes), *(-level * b * slope for slope in slopes))
        # Newest first: m_t, which r lists last, then m_0, m_1, ...
        weights = (older[-1], newest, *older[:-1]) if corrector else (newest, *older)
        return Row(first.scale, weights)


def _solve(r: Sequence[float], z: float, b: float) -> list[float]:
    """rho of sum_k r_k^(j-1) rho_k = j! psi(j, z) / b."""
    return matching(r, [math.factorial(j) * psi(j, z) / b for j in range(1, len(r) + 1)])
