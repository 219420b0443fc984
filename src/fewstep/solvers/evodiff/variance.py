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

A step to sigma = 0 from above the level where the schedule ends, as levels even in time have it, goes on to the answer
there instead, and ends at a mean: answers are about linear in n^ROUGH, and d_0 says how they go.

All of this is the plan's. How much of it a sample gets is measured on its own answers while it runs: `trust`, which
takes two rows for each prediction, that of the last two answers and what all have beyond it, and bounds the last one.

Kept from DDIM are the weight of x and the sum of the weights, so that what the denoiser does not change passes exactly.
For short steps the regression finds the derivative, and the order is at least 2.

Paper: EVODiff (NeurIPS 2025), sections 3-4, for the aim; the prior and the weights are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np

from ...schedule import DATA_STD, SAME, VISIBLE, Node
from ..core.base import euler_row
from .differences import LEAD, Differences
from .path_prior import Functional, PathPrior, Paths, mean_step
from .trust import Split, TrustingStage, most_at_the_end

__all__ = ["stages"]

HISTORY = 4  # predictions that a row weighs
PRIOR = PathPrior()
REACH = 0.25  # chosen on the development problems of docs/quality.md
RESTORED = 0.5  # half-way between least error and full variance
LAST_REACH = 5.0  # for grids where the prior hardly expects a difference; `focused` has 3.2 for 2 calls on a flow
# The least surprise that is expected, of a step's length and the data's: the prior spreads changes evenly over the
# levels, and data of one scale have all of theirs at one. Chosen on the development problems of docs/stress.md.
ONE_SCALE = 0.2
WINDOW, BEFORE = 64, 16  # steps
# An answer on the path differs from that at its end by about n to this power: 2 where all is decided, as of a Gaussian
# far wider than n, 1 at edges. Half-way between.
ROUGH = 1.5


def stages(
    nodes: Sequence[Node],
    extra: bool,
    data_std: float,
    *,
    end: float = -math.inf,
    prior: PathPrior = PRIOR,
    history: int = HISTORY,
    reach: float = REACH,
    restored: float = RESTORED,
    corrected: bool = True,
) -> list[TrustingStage]:
    """One stage per step, and with `extra` one more call at the last node, which corrects the step into it.

    A long run is planned a WINDOW of its steps at a time, each after some that are planned anew and left: what was
    before them hardly matters to short steps. Time and memory go with the number of steps.

    `end` is the half log-SNR where the schedule ends: a step to sigma = 0 from above foretells the answer there.

    `prior`, `history` (2 or more), `reach`, `restored` and `corrected=False` are for ablations:
    docs/least-variance.md.
    """
    last = len(nodes) - 1 - (nodes[-1].sigma == 0)  # the last noisy node
    lams = [node.lam + math.log(data_std / DATA_STD) for node in nodes[: last + 1]]  # the prior is of DATA_STD
    window = partial(
        _window,
        step=mean_step(lams),
        end=end,
        data_std=data_std,
        prior=prior,
        history=history,
        reach=reach,
        restored=restored,
        corrected=corrected,
    )
    plan: list[TrustingStage] = []
    windows = max(1, last // WINDOW)
    for begin in range(0, windows * WINDOW, WINDOW):
        first, final = max(0, begin - BEFORE), begin == (windows - 1) * WINDOW
        # One node too many, so that none is taken for the end.
        stop = len(nodes) if final else begin + WINDOW + 2
        part = window(nodes[first:stop], lams[first:stop], extra and final)
        plan += part[begin - first : None if final else -1]
    return plan


def _window(
    nodes: Sequence[Node],
    lams: Sequence[float],
    extra: bool,
    *,
    step: float,
    end: float,
    data_std: float,
    prior: PathPrior,
    history: int,
    reach: float,
    restored: float,
    corrected: bool,
) -> list[TrustingStage]:
    """`stages` of `nodes`, begun on the path, `lams` for those that are noisy."""
    last = len(lams) - 1
    paths = Paths(prior, lams, step)
    closing = last < len(nodes) - 1
    ahead = _ahead(nodes, end) if closing and last else 0.0
    # To end at the mean, or to foretell.
    mean = ahead > 0 or nodes[-1].nsr > VISIBLE * data_std / DATA_STD
    # As vectors: the solver's state, what the last step kept of it, and the newest answer. Of so short ones
    # `dot` takes half of the time of @.
    y = kept = newest = paths.state[0].ravel()
    differences = Differences(last, y.size, history - 1)
    gain = 0.0  # of the newest answer in the last step
    plan: list[TrustingStage] = []
    for i, s in enumerate(nodes[: last + (extra or closing)]):
        answer = paths.answer(i, y)
        foretold: tuple[float, ...] = ()
        surprise = 0.0
        # Beyond FAR nothing changes: no difference is known, and nothing to correct.
        if i and paths.share(i - 1) < 1 and (i < last + extra or ahead):
            foretold, left = differences.add(answer, newest)
            surprise = max(left, ONE_SCALE * (1 - paths.share(i - 1)))
        else:
            differences.forget()
        newest = answer
        correct = None
        if len(differences) and corrected and i < last + extra:
            y = kept + (1 - paths.share(i - 1)) * newest
            two, four = differences.rows(paths.state[i].ravel() - y)
            y, correct = y + four.dot(differences.vectors), _split(s.alpha, two, four)
        stage = TrustingStage(s, 1.0, 0.0, gain, correct, foretold=foretold, surprise=surprise, data_std=data_std)
        if i == last:
            if closing:
                scale, (move,) = euler_row("data", s, nodes[-1])
                if len(differences):
                    added = ahead * differences.vectors[0]
                    limit = most_at_the_end(s, nodes[-1], data_std * math.sqrt(added.dot(added)))
                    stage = stage._replace(predict=Split(nodes[-1].alpha * ahead, ()), most=limit)
                stage = stage._replace(scale=scale, move=move)
            plan.append(stage)
            break
        t, share, path = nodes[i + 1], paths.share(i), paths.state[i + 1].ravel()
        kept = share * y
        followed = i + 1 < last + extra  # by a correction
        counted: Functional | None = None
        part, furthest = 1.0, reach * corrected
        if not followed:
            part, furthest = restored * (not mean), LAST_REACH
            left = 1 - paths.wiener[i]  # undecided
            if t is not nodes[-1]:  # the image is the answer at t, J x^
                left = left * paths.wiener[i + 1] ** 2
            counted = np.broadcast_to(left, paths.state[i].shape).ravel()
        y, predict = kept + (1 - share) * newest, None
        if len(differences) and share < 1:
            off = path - y
            two, four = differences.rows(off)
            added, missing = four.dot(differences.vectors), _inner(off, path + y, counted)
            further = 1 + part * min(furthest, _lacking(y, added, missing, counted))
            two *= 1 + part * min(furthest, _lacking(y, two * differences.vectors[0], missing, counted))
            if four.any():
                if not followed:
                    stage = stage._replace(most=most_at_the_end(s, t, data_std * further * math.sqrt(added.dot(added))))
                y, predict = y + further * added, _split(t.alpha, two, further * four)
        scale, (move,) = euler_row("data", s, t)
        plan.append(stage._replace(scale=scale, move=move, predict=predict, keep=history - 2))
        gain = move
    return plan


def _ahead(nodes: Sequence[Node], end: float) -> float:
    """The weight of the newest difference in the step to sigma = 0; 0 from where the schedule ends."""
    before, here = nodes[-3].lam, nodes[-2].lam
    if end - here <= SAME:
        return 0.0
    # The shares that n^ROUGH lost in the last step and has to lose, by logarithms: levels may be close, or far apart.
    lost, left = (-math.expm1(-ROUGH * length) for length in (here - before, end - here))
    return min(LEAD, left * (1 - lost) / lost)


def _split(alpha: float, two: float, four: Functional) -> Split:
    """The weights of all differences, alpha `four`, of which `two` has that of the newest if it were the only one."""
    first, *rest = (alpha * four).tolist()
    return Split(alpha * two, (first - alpha * two, *rest) if rest else ())


def _inner(u: Functional, v: Functional, counted: Functional | None) -> float:
    return float(u.dot(v) if counted is None else (counted * u).dot(v))


def _lacking(y: Functional, added: Functional, missing: float, counted: Functional | None) -> float:
    """e >= 0, by which what is `added` to y is to grow so that y varies as the path, which it is `missing` without."""
    p, q = _inner(y, added, counted), _inner(added, added, counted)
    missing, p = missing - 2 * p - q, p + q
    if missing <= 0 or p <= 0:  # with p < 0 the variance falls first
        return 0.0
    return missing / (p + math.sqrt(p**2 + q * missing))  # the form of the root that does not cancel
