"""A Gaussian prior of what a denoiser says along a sampling path.

With y = x / alpha, n = sigma / alpha and lam = -log n the sampling ODE is dy/dlam = D - y. Take the image apart into
independent modes, one for each standard deviation s of the data, and let the denoiser answer in each

    D = J y + F,    J = s^2 / (s^2 + n^2),    F = 2 phi s J (1 - J) f(lam)

J is the Wiener filter: F = 0 is Gaussian data, whose posterior mean is linear. F is what Gaussian data would not
answer, a random function of the noise level (f of variance 1 and Matern-3/2 correlation of length `ell`), largest where
n = s, where the mode is decided and its conditional entropy falls fastest. The path is then

    y = psi (z + integral of F / psi dlam),    psi = sqrt(s^2 + n^2),    z ~ N(0, 1)

and everything that a solver sees or computes is linear in z and f. `Paths` holds it that way: an array (modes, 1 + K),
the coefficients of z and of K independent normals that make f on K knots. Sums of squares are variances.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["Functional", "PathPrior", "Paths", "mean_step"]

Functional = NDArray[np.float64]

KNOT = 0.15  # the longest distance of knots, in lam
FAR = 7.0  # |lam| beyond which nothing moves: signal or noise of a thousandth
DECIDING = 5.0  # |lam| beyond which hardly anything is decided, however long the steps
JITTER = 1e-10  # keeps the correlations of close knots positive definite


@dataclass(frozen=True)
class PathPrior:
    """The numbers of the prior; those of images in [-1, 1].

    `modes` standard deviations, log-spaced from `smallest` to `largest`, whose energies go like s^`slope`: in
    CIFAR-10, at 16 and 32 pixels a side, the energy per unit of log s goes about like s^0.5, up to s of 12 and 22.
    phi is `surprise` times the mean step in lam to the power `growth`: the longer the steps, the more happens between
    calls that they cannot tell. These two and `ell` were chosen on the development problems of docs/quality.md;
    strongly guided networks would take more surprise.
    """

    surprise: float = 0.26
    growth: float = 1.5
    ell: float = 0.5
    smallest: float = math.exp(-3.5)
    largest: float = math.exp(2.7)
    modes: int = 15
    slope: float = 0.5


def mean_step(lams: Sequence[float]) -> float:
    """The mean distance of these as far as they lie within DECIDING: how far beyond a run begins says nothing of it."""
    first, last = np.clip([lams[0], lams[-1]], -DECIDING, DECIDING).tolist()
    return float(last - first) / max(1, len(lams) - 1)


class Paths:
    """The prior along a run whose calls and end are at the half log-SNRs `lams`, rising, infinite ones included.

    state[i] is y at node i on the path; `answer(i, y)` what the denoiser says there at any y. Both in units of s, by
    the root of the mode's share of the energy. wiener[i] is J there, (modes, 1). place[i] is where the prior has node
    i, lam as far as FAR: `share(i)`, n_t / n_s of the step from node i, is of these places. phi goes by `step`,
    the `mean_step` here or, if these are a part of a run, in all of it.
    """

    def __init__(self, prior: PathPrior, lams: Sequence[float], step: float | None = None):
        places = np.clip(lams, -FAR, FAR)
        self.place: list[float] = places.tolist()
        parts = np.maximum(1, np.ceil(np.diff(places) / KNOT)).astype(int)
        at = [0, *np.cumsum(parts).tolist()]  # the knots that are nodes
        knots = np.interp(np.arange(at[-1] + 1), at, places)
        distance = np.abs(np.subtract.outer(knots, knots)) / prior.ell
        correlation = (1 + distance) * np.exp(-distance)
        correlation.flat[:: len(knots) + 1] += JITTER
        root = np.zeros((len(knots), 1 + len(knots)))  # of f at each knot, the coefficients
        root[:, 1:] = np.linalg.cholesky(correlation)
        s = np.exp(np.linspace(math.log(prior.smallest), math.log(prior.largest), prior.modes))[:, None]
        energy = s**prior.slope
        unit = np.sqrt(energy / energy.sum()) / s
        n = np.exp(-knots)
        psi, wiener = np.sqrt(s**2 + n**2), s**2 / (s**2 + n**2)
        step = mean_step(lams) if step is None else step
        surprise = 2 * prior.surprise * step**prior.growth * s * wiener * (1 - wiener)
        # The trapezoidal rule: half of each distance of knots for the one before it, and half for the one after.
        rate, halves = surprise / psi, np.diff(knots) / 2
        before, after = rate[:, :-1] * halves, rate[:, 1:] * halves
        path = np.zeros((len(at), prior.modes, 1 + len(knots)))
        path[0, :, 0] = 1
        for i, (j, k) in enumerate(pairwise(at)):
            path[i + 1] = path[i] + before[:, j:k] @ root[j:k] + after[:, j:k] @ root[j + 1 : k + 1]
        self.state: Functional = path * (psi * unit).T[at, :, None]
        self.wiener: Functional = wiener.T[at, :, None]
        self._surprise = ((surprise * unit).T[at, :, None] * root[at, None]).reshape(len(at), -1)
        self._filter = np.repeat(wiener.T[at], 1 + len(knots), axis=1)

    def share(self, i: int) -> float:
        """What is left of y in the step from node i, if all else is the denoiser's: 1 if both nodes are beyond FAR."""
        return math.exp(self.place[i] - self.place[i + 1])

    def answer(self, i: int, y: Functional) -> Functional:
        """D at node i, a vector, from the state y that a solver has reached, in any shape."""
        answer: Functional = self._filter[i] * y.ravel() + self._surprise[i]
        return answer
