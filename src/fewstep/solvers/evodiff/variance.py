"""EVODiff's default: each transition with the weights that minimise its conditional variance.

The papers choose the weights of a step so that the variance of x_t given what is known falls most, from a differences
of predictions and assumptions on their variances. Here the variance is that of a prior of the whole path, `path_prior`,
under which x_t, the predictions and the errors that the solver itself has made are jointly Gaussian. The entropy of
x_t given the predictions is then half the log of a variance, and the weights that minimise it are a regression.

With q = n_t / n_s, predictions m_0 at s, m_1, m_2, m_3 before it, and m_t at t:

    predict   x^  = (sigma_t / sigma_s) x + alpha_t ((1 - q) m_0 + sum_j c_j (m_j - m_j+1)),        j = 0, 1, 2
    call      m_t = D(x^, t)
    correct   x_t = (sigma_t / sigma_s) x + alpha_t ((1 - q) m_t + sum_j d_j (m_j-1 - m_j)),        m_-1 = m_t

c minimises the expected square of x^ / alpha_t less the path's y at t, summed over the prior's modes; d that of
x_t / alpha_t. Both know that earlier predictions were made at the solver's own states, errors included: the prior is
carried through the steps planned so far, once, in float64, before any tensor exists.

The call itself is made further on, at c times 1 + e. x^ is a conditional mean, and has less variance than what it
predicts; a sharp denoiser, asked at a mean of images, answers with another mean. e >= 0 restores the variance,

    E |x^|^2 + 2 e P + e^2 Q = E |x_t|^2,    Q = E |d|^2,  P = E x^ d,  d the differences as weighted by c,

up to e = REACH: over steps that long the prior guesses. The correction, planned with it, takes back what was too much.
For short steps e goes like their square.

The last prediction is the image or, before a step to sigma = 0, what is denoised to it, and a mean lacks the details
that are decided within the step. On the line from the mean to the nearest estimate that is distributed as images are,
the squared error grows with the square of the way (Freirich, Michaeli and Meir, 2021): half-way costs a quarter. So its
e is RESTORED = 1/2 of the root of the same equation, in which each mode counts by 1 - J at s, the share of it that is
undecided there: 0.6 for 5 of EDM's calls, 0.1 for 8, nothing for many. One factor serves all modes: it is the sum of
their variances that is restored, before a step to sigma = 0 those of J x^, the answer there. A run that ends at visible
noise, or corrects its last step, stays at the mean.

No correction takes back what the last prediction does too much. A denoiser that has decided by then differs little in
its newest answers and much in older ones, and c, made for changes that go on, adds them. So what the differences add,
d = (1 + e) sum_j c_j (m_j - m_j+1), is made smaller in samples where it is larger, beside |m_0 - m_1|, than LIMIT times
what the prior expects of the mean's:

    d  <-  d min(1, limit |m_0 - m_1| / |d|),    limit = LIMIT sqrt(E |d|^2 / E |m_0 - m_1|^2) / (1 + e)

In 5 calls most samples come to that, in 8 hardly one of a smooth denoiser. This factor is all that is measured at run
time.

Kept from DDIM are the weight of x and the sum of the weights, so that what the denoiser does not change passes exactly.
For short steps the regression finds the derivative, and the order is at least 2.

Paper: EVODiff (NeurIPS 2025), sections 3-4, for the aim; the prior and the weights are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise, zip_longest
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...grid.base import VISIBLE
from ...schedule import DATA_STD, Node
from ..core.base import Stage, euler_row
from .path_prior import Functional, PathPrior, Paths

__all__ = ["stages"]

HISTORY = 4  # predictions that a row weighs
PRIOR = PathPrior()
REACH = 0.25  # chosen on the development problems of docs/quality.md
RESTORED = 0.5  # half-way between least error and full variance
LAST_REACH = 5.0  # for grids where the prior hardly expects a difference; `focused` has 4.7 for 2 calls on a flow
TRUSTED = 1.4  # chosen on the development problems of docs/stress.md
X = {'c': 0.0, 'left': True, 'share': True, 'innov': True}
TINY = 1e-30  # in place of 0 where something is divided by
RIDGE = 1e-10  # relative; keeps nearly parallel differences from large weights of opposite signs


class Moved(NamedTuple):
    """What a step added to the scaled state, its answer, and the differences of the answers before, newest first."""

    moved: Tensor
    newest: Tensor
    differences: tuple[Tensor, ...]
    left: Tensor


class TrustingStage(NamedTuple):
    """One call; the table above has its equations. All weights but `move` multiply differences, newest first."""

    node: Node
    scale: float
    move: float
    gain: float = 0.0
    correct: tuple[float, ...] = ()
    lead: float = 0.0
    rest: tuple[float, ...] = ()
    foretold: tuple[float, ...] = ()
    size: float = math.inf
    data_std: float = 1.0
    keep: int = 0
    noise: float = 0.0

    def __call__(self, state: Moved | None, x: Tensor, denoised: Tensor) -> tuple[Tensor, Moved]:
        differences: tuple[Tensor, ...] = ()
        over = tuple(range(1, x.ndim))
        left = first = torch.linalg.vector_norm(torch.sub(x, denoised, alpha=self.node.alpha), dim=over, keepdim=True) / self.node.sigma
        if state is not None: first = state.left
        if state is not None:
            differences = (denoised - state.newest, *state.differences)
            if self.correct:
                x = (x - state.moved).add_(denoised, alpha=self.gain)
                for weight, difference in zip(self.correct, differences, strict=False):
                    x.add_(difference, alpha=weight)
        moved = denoised * self.move
        if self.lead:
            d = differences[0]
            surprise, share = d, None
            if self.foretold:
                p = differences[1] * self.foretold[0]
                for weight, difference in zip(self.foretold[1:], differences[2:], strict=False):
                    p.add_(difference, alpha=weight)
                surprise = d - p if X['innov'] else d
                share = (d * p).sum(over, keepdim=True) / p.square_().sum(over, keepdim=True).clamp_(min=TINY)
            size = torch.linalg.vector_norm(surprise, dim=over, keepdim=True)
            told = (first / left).square_().sub_(1).mul_(self.node.nsr**2).clamp_(min=self.data_std**2) if X['left'] else self.data_std**2
            z0 = told * (self.size**2 * d[0].numel())
            if X['c'] and self.foretold: z0 = z0 + X['c']**2 * d.square().sum(over, keepdim=True)
            z = (z0 / size.square_().clamp_(min=TINY)).clamp_(max=1)
            moved.addcmul_(z, d, value=self.lead)
            if share is not None:
                z = z * (share.clamp_(0, 1) if X['share'] else 1)
                for weight, difference in zip(self.rest, differences, strict=False):
                    moved.addcmul_(z, difference, value=weight)
        return (x * self.scale).add_(moved), Moved(moved, denoised, differences[: self.keep], first)


def stages(
    nodes: Sequence[Node],
    extra: bool,
    data_std: float,
    *,
    prior: PathPrior = PRIOR,
    history: int = HISTORY,
    reach: float = REACH,
    restored: float = RESTORED,
    trusted: float = TRUSTED,
    corrected: bool = True,
) -> list[Stage]:
    """One stage per step, and with `extra` one more call at the last node, which corrects the step into it.

    `prior`, `history` (1 or more), `reach`, `restored`, `trusted` and `corrected=False` are for ablations:
    docs/least-variance.md.
    """
    unit = math.log(data_std / DATA_STD)
    last = len(nodes) - 1 - (nodes[-1].sigma == 0)  # the last noisy node
    paths = Paths(prior, [node.lam + unit for node in nodes[: last + 1]])
    answers: list[Functional] = []  # newest first
    y = kept = paths.state[0]  # the solver's state, and the part of it that the last step kept
    gain = 0.0
    plan: list[Stage] = []
    for i, s in enumerate(nodes[: last + extra]):
        if i and paths.share(i - 1) == 1:
            answers.clear()  # beyond FAR nothing changes: no difference of answers is known, and nothing to correct
        new = paths.answer(i, y)
        foretold: tuple[float, ...] = ()
        surprise = math.inf
        if answers:
            forecast = _regress(new, answers[: history - 1], 1.0)
            foretold = _by_differences(forecast)
            surprise = float(np.linalg.norm(new - (_sum(forecast, answers) if X['innov'] else answers[0])))
        answers.insert(0, new)
        correct: tuple[float, ...] = ()
        if len(answers) > 1 and corrected:
            weights = _regress(paths.state[i] - kept, answers[:history], 1 - paths.share(i - 1))
            y = kept + _sum(weights, answers)
            correct = _scaled(s.alpha, _by_differences(weights))
        if i == last:
            plan.append(TrustingStage(s, 1.0, 0.0, gain, correct))
            break
        t, share = nodes[i + 1], paths.share(i)
        kept = share * y
        followed = i + 1 < last + extra  # by a correction
        counted = None  # nothing to restore
        if not followed and nodes[-1].nsr <= VISIBLE * data_std:
            counted = 1 - paths.wiener[i]
            if t is not nodes[-1]:  # the image is the answer at t, J x^
                counted = counted * paths.wiener[i + 1] ** 2

        def best(known: Sequence[Functional]) -> tuple[float, ...]:
            mean = _regress(paths.state[i + 1] - kept, known, 1 - share)
            if followed and corrected:
                return _wider(mean, min(reach, _lacking(mean, kept, answers, paths.state[i + 1])))
            if counted is not None:
                return _wider(mean, restored * min(LAST_REACH, _lacking(mean, kept, answers, paths.state[i + 1], counted)))
            return mean

        known = answers[: history if share < 1 else 1]
        moved = best(known)
        y = kept + _sum(moved, answers)
        all_, lead = _scaled(t.alpha, _by_differences(moved)), _scaled(t.alpha, _by_differences(best(known[:2])))
        rest = () if len(all_) < 2 else (all_[0] - lead[0], *all_[1:])
        scale, (move,) = euler_row("data", s, t)
        size = math.inf
        if lead:
            size = trusted * surprise
        plan.append(TrustingStage(s, scale, move, gain, correct, lead[0] if lead else 0.0, rest, foretold, size, data_std, history - 2 if followed else 0))
        gain = move
    if last < len(nodes) - 1:
        scale, (move,) = euler_row("data", *nodes[-2:])
        plan.append(TrustingStage(nodes[last], scale, move))
    return plan


def _by_differences(weights: Sequence[float]) -> tuple[float, ...]:
    """c_j of sum_j w_j m_j = (sum_j w_j) m_0 + sum_j c_j (m_j - m_j+1)."""
    return tuple((-np.cumsum(weights[:0:-1])[::-1]).tolist())


def _scaled(factor: float, weights: Sequence[float]) -> tuple[float, ...]:
    return tuple(factor * w for w in weights)


def _regress(target: Functional, answers: Sequence[Functional], gain: float) -> tuple[float, ...]:
    """The weights of `answers`, of the sum `gain`, that leave the least of `target`."""
    weights = np.zeros(len(answers))
    weights[0] = gain
    if len(answers) > 1:
        differences = np.stack([(a - b).ravel() for a, b in pairwise(answers)])
        sizes = np.linalg.norm(differences, axis=1) + math.ulp(0)
        unit = differences / sizes[:, None]
        gram = unit @ unit.T + RIDGE * np.eye(len(unit))
        found = np.linalg.solve(gram, unit @ (target - gain * answers[0]).ravel()) / sizes
        weights[:-1] += found
        weights[1:] -= found
    return tuple(weights.tolist())


def _lacking(
    weights: tuple[float, ...],
    kept: Functional,
    answers: Sequence[Functional],
    path: Functional,
    counted: float | Functional = 1.0,
) -> float:
    """e >= 0, by which the differences are to grow so that the state varies as the path; modes count by `counted`."""
    y, d = kept + _sum(weights, answers), _sum(_changes(weights), answers)
    missing, p, q = (counted * (path**2 - y**2)).sum(), (counted * y * d).sum(), (counted * d**2).sum()
    if missing <= 0 or p <= 0:  # with p < 0 the variance falls first
        return 0.0
    return float(missing / (p + math.sqrt(p**2 + q * missing)))  # the form of the root that does not cancel


def _wider(weights: tuple[float, ...], e: float) -> tuple[float, ...]:
    """`weights` with their differences 1 + e times as large."""
    return tuple(w + e * change for w, change in zip(weights, _changes(weights), strict=True))



def _changes(weights: Sequence[float]) -> tuple[float, ...]:
    """What `weights` differ by from DDIM's, which gives the newest answer all of their sum."""
    return weights[0] - sum(weights), *weights[1:]


def _sum(weights: Sequence[float], answers: Sequence[Functional]) -> Functional:
    return np.tensordot(weights, np.stack(answers[: len(weights)]), axes=1)
