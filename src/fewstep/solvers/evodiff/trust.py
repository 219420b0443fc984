"""How far a sample may be foretold, measured on its own answers: the step of EVODiff's default.

With the answers m_j, newest first, their differences d_j = m_j - m_j+1, and numbers of the plan (`variance`):

    here      code         what it is
    P         change       what d_0 was foretold to be, sum_j foretold_j d_j+1; nothing before the third call
    E         surprise     the root mean square that the prior expects of d_0 - P, for data of standard deviation 1
    rho       noise        the noise that the answer finds in x, |x - alpha m_0| / sigma, over the first call's
    v         n^2 allowed  the variance of the data, data_std^2 or, if more, what rho says of it, n^2 (1 / rho^2 - 1);
                           n = nsr

    z = min(1, ((TRUSTED E)^2 v / |d_0 - P|^2 + w) / (1 + u max(0, rho^2 - 1) / SLACK^2))
    u = min(1, |d_0 - P|^2 / (SLACK |d_0|^2)), and rho^2 counts as 2 at most
    w = max(0, <d_0, P>) / ((1 - SLACK) (|P|^2 + rho^4 max(0, |d_0|^2 - |P|^2)))
    s = <d_0, P> / ((1 - SLACK) |P|^2), within [0, 1]                        all |.|^2 are means over the elements

Rows are split: what the last two answers alone would weigh, the lead, and what all answers have beyond that, the rest,
which counts s times. All that a prediction adds to DDIM's counts z times as well; if no later call corrects it, as the
last, at most so many times that lead d_0 has a root mean square of `most`. A correction, whose lead is the
trapezoid rule's, is what holds guided answers together, and counts in full. But over a step from pure noise it may have
a lead above 0, beyond its newest answer: that much is foretold, and counts z times. Why:

- v: a change that is much larger than the prior allows comes of strong guidance, or of errors of the network. Gaussian
  data leave rho = n / sqrt(s^2 + n^2) of the noise, so that what an answer has explained tells how large the data are.
  Guidance and errors explain nothing: there rho stays at 1, and v is data_std^2.
- w: whatever its size, a change that came as it was foretold goes on, by as much as it did. One that is larger than
  foretold may be of a sample that is just decided, and then it is over: there w is the projection of what was foretold
  on what came. Unless the answers explain the noise, rho < 1, as data larger than the prior's do: they go on growing.
- rho > 1: what an answer leaves of x, and what it misses of x_0, are orthogonal, so that on the path it finds no more
  noise than there is. An x in which it finds more is off the path, by n sqrt(rho^2 - 1) or more: a step was so long
  that the sample was decided within it. The answer is of that decision, and its change does not go on. Gaussian data
  decide nothing: there an answer goes towards x, and rho stays below 1 in any step.
- u: answers that no posterior mean gives, all too large or turned, find more noise than there is in every call. What
  came as it was foretold is of no decision: the less is missed, the less rho counts, and short steps keep the order.
- most: DDIM's image of Gaussian data of standard deviation s is r (1 - r / sqrt(1 + r^2)) n off, r = s / n: a mode
  that is far from decided hardly shows, and one that is decided hardly moves. That is LEFT n at most, whatever s is,
  and less in a step that ends at noise. So much may be added or, if it is more, what the prior expects: on coarse
  levels the last prediction takes back what the calls before left. A difference that would add more goes on with a
  decision that is over: data on a sphere, bits and categories have such.
- s: under the prior P is a regression, so <d_0, P> is |P|^2 in the mean. It is less where a sample was decided sooner
  than foretold: old differences, which are large then, must not be added again.

With z = 0 the step is DDIM's. For short steps P foretells the change, z = s = 1, and the order is the plan's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...schedule import Node

__all__ = ["Moved", "Split", "TrustingStage", "most_at_the_end"]

# Both chosen on the development problems of docs/stress.md.
TRUSTED = 1.5
SLACK = 0.25
TINY = 1e-30  # in place of 0 where something is divided by
NOISIEST = 2.0  # of rho^2: what is further off the path is trusted as little
LEFT: float = ((1 + math.sqrt(5)) / 2) ** -2.5  # 0.3, r (1 - r / sqrt(1 + r^2)) at its largest, r^2 = 0.618


class Moved(NamedTuple):
    """What a step leaves to the next: 4 tensors like x, and a number a sample.

    moved: what it added to the scaled x. newest: its answer. differences: of that and the answers before, newest
    first. noise: the norm of the noise that the first call found.
    """

    moved: Tensor
    newest: Tensor
    differences: tuple[Tensor, ...]
    noise: Tensor


class Split(NamedTuple):
    """Weights of the differences of a row: lead d_0 as two answers have it, and what all have beyond that."""

    lead: float
    rest: tuple[float, ...]


class TrustingStage(NamedTuple):
    """One call: its answer corrects the step before, tells how far the sample may be foretold, and moves on.

        y  = x - moved + gain m_0 + C,            x' = scale y + moved',   moved' = move m_0 + z M

    C, of `correct`, and M, of `predict`, are lead d_0 + s sum_j rest_j d_j, a lead of C above 0 counting z times;
    without C y is x. M counts min(z, most / |lead d_0|) times. `keep` differences serve the next call. Sizes are per
    sample, and no tensor becomes a number.
    """

    node: Node
    scale: float
    move: float
    gain: float = 0.0
    correct: Split | None = None
    predict: Split | None = None
    foretold: tuple[float, ...] = ()
    surprise: float = 0.0
    data_std: float = 0.0
    keep: int = 0
    noise: float = 0.0
    most: float = math.inf

    def __call__(self, state: Moved | None, x: Tensor, denoised: Tensor) -> tuple[Tensor, Moved]:
        noise = _size(torch.sub(x, denoised, alpha=self.node.alpha))
        if state is None:
            moved = denoised * self.move
            out = torch.add(moved, x, alpha=self.scale)
            return out, Moved(moved, denoised, (), noise.div(self.node.sigma).clamp_(min=TINY))
        differences = (denoised - state.newest, *state.differences)
        z, share = self._trust(differences, noise / state.noise * (1 / self.node.sigma))
        moved = denoised * self.move
        if self.predict:
            part = z if math.isinf(self.most) else torch.minimum(z, self._within(differences[0], self.predict.lead))
            moved.addcmul_(part, differences[0], value=self.predict.lead)
            both = part * share if self.predict.rest else part
            for weight, difference in zip(self.predict.rest, differences, strict=False):
                moved.addcmul_(both, difference, value=weight)
        out = torch.add(moved, x, alpha=self.scale)
        if self.correct:
            out.sub_(state.moved, alpha=self.scale).add_(denoised, alpha=self.scale * self.gain)
            lead = self.scale * self.correct.lead
            if lead > 0:
                out.addcmul_(z, differences[0], value=lead)
            else:
                out.add_(differences[0], alpha=lead)
            for weight, difference in zip(self.correct.rest, differences, strict=False):
                out.addcmul_(share, difference, value=self.scale * weight)
        return out, Moved(moved, denoised, differences[: self.keep], state.noise)

    def _within(self, difference: Tensor, lead: float) -> Tensor:
        """The share of lead * difference whose root mean square is `most`, in each sample."""
        size = (_size(difference) * abs(lead)).clamp(min=TINY)
        return size.reciprocal() * (self.most * math.sqrt(difference.numel() // len(difference)))

    def _trust(self, differences: Sequence[Tensor], noise: Tensor) -> tuple[Tensor, Tensor]:
        """z and s, (B, 1, ...), from rho; s where there is something foretold."""
        d, variance = differences[0], self.node.nsr**2
        expected = (TRUSTED * self.surprise) ** 2 * variance * (d.numel() // len(d))
        found = noise.square().clamp_(TINY, NOISIEST)
        explained = 1 - found
        allowed = (explained / found).clamp_(min=self.data_std**2 / variance)
        surplus = explained.clamp(max=0)  # below 0, where more noise is found than there is
        came = _size(d).square()
        if not self.foretold:
            off_path = 1 - surplus.mul_(1 / SLACK**2)
            return allowed.mul_(expected).div_(came.clamp(min=TINY)).div_(off_path).clamp_(max=1), came
        change = differences[1] * self.foretold[0]
        for weight, difference in zip(self.foretold[1:], differences[2:], strict=False):
            change.add_(difference, alpha=weight)
        size = _size(change).square().clamp_(min=TINY)
        missed = _size(change - d).square().clamp_(min=TINY)
        along = (came + size).sub_(missed).mul_(0.5 / (1 - SLACK)).clamp_(min=0)  # <d_0, P> / (1 - SLACK)
        grown = (came - size).clamp_(min=0)
        goes_on = along / torch.addcmul(size, found.square(), grown)
        goes_on.addcdiv_(allowed, missed, value=expected)
        whole = torch.maximum(missed, came.mul_(SLACK))  # u is |d_0 - P|^2 over this
        z = goes_on.mul_(whole).div_(torch.addcmul(whole, surplus, missed, value=-1 / SLACK**2)).clamp_(max=1)
        return z, (along / size).clamp_(max=1)


def most_at_the_end(s: Node, t: Node, expected: float) -> float:
    """The root mean square that a prediction from s to t may add if nobody corrects it; `expected` is the prior's."""
    return t.alpha * max(LEFT * s.nsr, expected)


def _size(x: Tensor) -> Tensor:
    """The norm of each sample of (B, *), as (B, 1, ...)."""
    size: Tensor = torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)), keepdim=True)
    return size
