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

All of this is the plan's. How much of it a sample gets is measured on its own answers while it runs: `trust`, which
takes two rows for each prediction, that of the last two answers alone, and what all of them have beyond it. The image
that a last prediction adds too much to, since nobody corrects it, is kept by the same measure.

Kept from DDIM are the weight of x and the sum of the weights, so that what the denoiser does not change passes exactly.
For short steps the regression finds the derivative, and the order is at least 2.

Paper: EVODiff (NeurIPS 2025), sections 3-4, for the aim; the prior and the weights are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from ...grid.base import VISIBLE
from ...schedule import DATA_STD, Node
from ..core.base import Stage, euler_row
from .path_prior import Functional, PathPrior, Paths
from .trust import TrustingStage

__all__ = ["stages"]

HISTORY = 4  # predictions that a row weighs
PRIOR = PathPrior()
REACH = 0.25  # chosen on the development problems of docs/quality.md
RESTORED = 0.5  # half-way between least error and full variance
LAST_REACH = 5.0  # for grids where the prior hardly expects a difference; `focused` has 4.7 for 2 calls on a flow
RIDGE = 1e-10  # relative; keeps nearly parallel differences from large weights of opposite signs


def stages(
    nodes: Sequence[Node],
    extra: bool,
    data_std: float,
    *,
    prior: PathPrior = PRIOR,
    history: int = HISTORY,
    reach: float = REACH,
    restored: float = RESTORED,
    corrected: bool = True,
) -> list[Stage]:
    """One stage per step, and with `extra` one more call at the last node, which corrects the step into it.

    `prior`, `history` (1 or more), `reach`, `restored` and `corrected=False` are for ablations:
    docs/least-variance.md.
    """
    last = len(nodes) - 1 - (nodes[-1].sigma == 0)  # the last noisy node
    unit = data_std / DATA_STD  # of the prior's data
    paths = Paths(prior, [node.lam + math.log(unit) for node in nodes[: last + 1]])
    shows = nodes[-1].nsr > VISIBLE * unit
    answers: list[Functional] = []  # newest first
    y = kept = paths.state[0]  # the solver's state, and the part of it that the last step kept
    gain = 0.0  # of the newest answer in the last step
    plan: list[Stage] = []
    for i, s in enumerate(nodes[: last + extra]):
        if i and paths.share(i - 1) == 1:
            answers.clear()  # beyond FAR nothing changes: no difference of answers is known, and nothing to correct
        answer = paths.answer(i, y)
        forecast = _regress(answer, answers[: history - 1], 1.0)
        surprise = float(np.linalg.norm(answer - _sum(forecast, answers))) if answers else 0.0
        answers.insert(0, answer)
        correct: tuple[float, ...] = ()
        if len(answers) > 1 and corrected:
            weights = _regress(paths.state[i] - kept, answers[:history], 1 - paths.share(i - 1))
            y, correct = kept + _sum(weights, answers), _by_differences(weights, s.alpha)
        if i == last:
            plan.append(TrustingStage(s, 1.0, 0.0, gain, correct))
            break
        t, share = nodes[i + 1], paths.share(i)
        kept = share * y
        followed = i + 1 < last + extra  # by a correction
        counted: float | Functional = 1.0
        part, most = 1.0, reach * corrected
        if not followed:
            part, most = restored * (not shows), LAST_REACH
            counted = 1 - paths.wiener[i]  # undecided
            if t is not nodes[-1]:  # the image is the answer at t, J x^
                counted = counted * paths.wiener[i + 1] ** 2
        known = answers[: history if share < 1 else 1]
        rows = []
        for some in (known[:2], known):
            mean = _regress(paths.state[i + 1] - kept, some, 1 - share)
            e = min(most, _lacking(mean, kept, answers, paths.state[i + 1], counted))
            rows.append(_wider(mean, part * e))
        two, all_known = rows
        y = kept + _sum(all_known, answers)
        scale, (move,) = euler_row("data", s, t)
        stage = TrustingStage(s, scale, move, gain, correct, keep=max(0, history - 2) * followed)
        if len(known) > 1:
            (lead,), differences = _by_differences(two, t.alpha), _by_differences(all_known, t.alpha)
            rest = (differences[0] - lead, *differences[1:]) if len(differences) > 1 else ()
            foretold = _by_differences(forecast)
            stage = stage._replace(lead=lead, rest=rest, foretold=foretold, surprise=surprise, data_std=data_std)
        plan.append(stage)
        gain = move
    if last < len(nodes) - 1:
        scale, (move,) = euler_row("data", *nodes[-2:])
        plan.append(TrustingStage(nodes[last], scale, move))
    return plan


def _by_differences(weights: Sequence[float], factor: float = 1.0) -> tuple[float, ...]:
    """factor c_j, where sum_j w_j m_j = (sum_j w_j) m_0 + sum_j c_j (m_j - m_j+1)."""
    return tuple((-factor * np.cumsum(weights[:0:-1])[::-1]).tolist())


def _regress(target: Functional, answers: Sequence[Functional], gain: float) -> tuple[float, ...]:
    """The weights of `answers`, of the sum `gain`, that leave the least of `target`."""
    if not answers:
        return ()
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
