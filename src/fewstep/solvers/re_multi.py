"""FD and RE multistep iterations: the linear part of the EVODiff papers, in data prediction, one call a step.

In f(x) = x / sigma and kappa = alpha / sigma. For the step s -> t, the node p before s, and the predictions m_t at the
predicted point, m_0 at s, m_1 at p:

    h           kappa_t - kappa_s
    B_l         (m_0 - m_1) / l, the past difference
    B_s         (m_t - m_0) / h, the coming one
    l           kappa_s - kappa_p ("kappa"), or h (lam_s - lam_p) / (lam_t - lam_s) ("lam")

    predict     f(x^) = f(x) + h m_0 + h^2 / 2 zeta_l B_l
    call        m_t = D(x^, t)
    correct     f(x_t) = f(x) + h m_0 + h^2 / 2 (eta zeta_s B_s + (1 - eta) zeta_l B_l)

    FD                    eta = 0, zeta = 1        (4.4), in the NeurIPS text (13)
    RE, explicit, u = l   eta = 0                  (4.5) and (4.7), (14) and (15)
    RE, implicit, u = s   eta = 1                  (4.6) and (4.7), (15)
    balanced gradient     eta in (0, 1)            (4.8), (16)

Equation numbers of "Improving Denoising Diffusion with Efficient Conditional Entropy Reduction" (ICLR 2025 submission)
and of "EVODiff" (NeurIPS 2025). With eta = 0 the prediction is the step and nothing is corrected. The answer of a call
serves the correction of one step and the prediction of the next; the first step is DDIM, the step into the last noisy
node only predicted. With eta and zeta read off the answers this is Algorithm 1, EVODiff(mode="paper").

zeta, by Proposition 4.2 (Remark 4.3 of the NeurIPS text), if Var(d) grows as sigma^2:

    "prior"     zeta_l = sigma_s^2 / (sigma_s^2 + sigma_p^2),   zeta_s = sigma_t^2 / (sigma_s^2 + sigma_t^2)
    "minimal"   1 - zeta_l and 1 - zeta_s

What the print leaves open, and our choice. (4.5) puts d(l) = zeta m_0 + (1 - zeta) m_1 into the difference m_0 - d(l),
which is (1 - zeta) (m_0 - m_1), and (4.6) likewise gives zeta (m_t - m_0); (4.7) writes zeta for both: we follow (4.7).
The print calls its zeta the one of least variance of d(l) and d(s_i). Each weights a prediction by its own variance;
the least variance has the other's, which is 1 - zeta: "minimal". It is what (4.5) does with the printed zeta.

(4.4) divides by kappa_s - kappa_p, Algorithm 1 and the authors' code by r h, r the ratio of steps in log-SNR. The two
agree for short steps; long ones grow by e^(lam_t - lam_s) in kappa, and "kappa" extrapolates as much further. It is
the Adams-Bashforth rule in kappa, exact for predictions that are linear in it; "lam" is DPM-Solver++(2M).

Theorem 4.2 claims second order. Both priors tend to 1/2 for short steps, which leaves half of the second-order term
away: order 1. zeta = 1 is of order 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from ..grid import Grid, uniform
from ..schedule import Node, Schedule
from .core.base import LinearStage, Row, choice, euler_row, orders, spend


@dataclass(frozen=True)
class REMulti:
    """The RE iterations: `REMulti()` explicit, `REMulti(eta=1)` implicit, `REMulti(eta=0.5)` balanced.

    `eta` in [0, 1] is the share of the coming difference, `zeta` the weight of the second-order term: "prior",
    "minimal" or a number; `REMulti(zeta=1)` is FD. `length` is the variable in which the past difference is divided by
    the past step.

    Cost: 1 call per step. Order: 2 for zeta = 1, else 1 (measured, docs/numerics.md).
    """

    eta: float = 0.0
    zeta: float | Literal["prior", "minimal"] = "prior"
    length: Literal["kappa", "lam"] = "kappa"
    grid: ClassVar[Grid] = uniform
    calls_per_step: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be a number in [0, 1]; got {self.eta!r}")
        if isinstance(self.zeta, str):
            choice("zeta", self.zeta, ("prior", "minimal"))
        elif not 0 <= self.zeta <= 1:
            raise ValueError(f"zeta must be 'prior', 'minimal' or a number in [0, 1]; got {self.zeta!r}")
        choice("length", self.length, ("kappa", "lam"))

    def plan(self, schedule: Schedule, nodes: Sequence[Node], nfe: int | None = None) -> list[LinearStage]:
        stages: list[LinearStage] = []
        correct: Row | None = None
        for i, order in enumerate(orders(nodes, 2, final_order=2)):
            s, t = nodes[i : i + 2]
            held, move = correct, euler_row("data", s, t)
            correct = None
            if order == 2:
                move, corrected = self._rows(nodes[i - 1], s, t)
                # Worth it if the next call moves on to a noisy node; a step to sigma = 0 keeps nothing of x.
                if self.eta and i + 2 < len(nodes) and nodes[i + 2].sigma > 0:
                    correct = corrected
            # A corrector of three predictions needs m_1 once more; with eta = 1 it has no weight.
            keep = (0, 1) if correct and self.eta < 1 else (0,)
            stages.append(LinearStage(s, move, correct=held, hold=correct is not None, keep=keep))
        return spend(stages, nfe, len(nodes) - 1)

    def _rows(self, p: Node, s: Node, t: Node) -> tuple[Row, Row]:
        """The prediction, on (m_0, m_1), and the correction, on (m_t, m_0, m_1)."""
        scale, (gain,) = euler_row("data", s, t)  # sigma_t h
        if self.length == "kappa":
            steps = (1 / t.nsr - 1 / s.nsr) / (1 / s.nsr - 1 / p.nsr)
        else:
            steps = (t.lam - s.lam) / (s.lam - p.lam)
        past = self.weight(s, p) * steps * gain / 2
        coming = self.eta * self.weight(t, s) * gain / 2
        kept = (1 - self.eta) * past
        corrected = (coming, gain - coming + kept, -kept)
        return Row(scale, (gain + past, -past)), Row(scale, corrected if self.eta < 1 else corrected[:2])

    def weight(self, newer: Node, older: Node) -> float:
        """zeta of the difference of the predictions at two nodes."""
        if not isinstance(self.zeta, str):
            return self.zeta
        prior = newer.sigma**2 / (newer.sigma**2 + older.sigma**2)
        return prior if self.zeta == "prior" else 1 - prior
