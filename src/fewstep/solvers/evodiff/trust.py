"""How far a sample may be foretold, measured on its own answers: the step of EVODiff's default.

With the answers m_j, newest first, their differences d_j = m_j - m_j+1, and numbers of the plan (`variance`):

    here      code         what it is
    P         change       what d_0 was foretold to be, sum_j foretold_j d_j+1; nothing before the third call
    E         surprise     the root mean square that the prior expects of d_0 - P, for data of standard deviation 1
    rho       root(found)  the noise that the answer finds in x, |x - alpha m_0| / sigma, over the first call's
    v         allowed      the variance of the data: data_std^2 or, if more, what rho says of it, n^2 (1 / rho^2 - 1),
                           n = nsr

    z = min(1, ((TRUSTED E)^2 v / |d_0 - P|^2 + w) / (1 + u max(0, rho^2 - 1) / SLACK^2))
    u = min(1, |d_0 - P|^2 / (SLACK |d_0|^2)), and rho^2 counts as 2 at most
    w = max(0, <d_0, P>) / ((1 - SLACK) (|P|^2 + rho^4 max(0, |d_0|^2 - |P|^2)))
    s = <d_0, P> / ((1 - SLACK) |P|^2), within [0, 1]                        all |.|^2 are means over the elements

Rows are split: what the last two answers alone would weigh, the lead, and what all answers have beyond that, the rest,
which counts s times. All that a prediction adds to DDIM's counts z times as well. A correction, whose lead is the
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
- s: under the prior P is a regression, so <d_0, P> is |P|^2 in the mean. It is less where a sample was decided sooner
  than foretold: old differences, which are large then, must not be added again.

With z = 0 the step is DDIM's. For short steps P foretells the change, z = s = 1, and the order is the plan's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...schedule import Node
from ..core.inner import Inner

__all__ = ["Moved", "Split", "TrustingStage"]

# Both chosen on the development problems of docs/stress.md.
TRUSTED = 1.5
SLACK = 0.25
TINY = 1e-30  # in place of 0 where something is divided by
NOISIEST = 2.0  # of rho^2: what is further off the path is trusted as little


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
    without C y is x. `keep` differences serve the next call. Sizes are per sample, and no tensor becomes a number.
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

    def __call__(self, state: Moved | None, x: Tensor, denoised: Tensor) -> tuple[Tensor, Moved]:
        noise = _size(torch.sub(x, denoised, alpha=self.node.alpha)).div(self.node.sigma)
        if state is None:
            moved = denoised * self.move
            return torch.add(moved, x, alpha=self.scale), Moved(moved, denoised, (), noise.clamp_(min=TINY))
        differences = (denoised - state.newest, *state.differences)
        z, share = self._trust(differences, noise.div_(state.noise).square_())
        moved = denoised * self.move
        if self.correct:
            x = (x - state.moved).add_(denoised, alpha=self.gain)
            if self.correct.lead > 0:
                x.addcmul_(z, differences[0], value=self.correct.lead)
            else:
                x.add_(differences[0], alpha=self.correct.lead)
            for weight, difference in zip(self.correct.rest, differences, strict=False):
                x.addcmul_(share, difference, value=weight)
        if self.predict:
            moved.addcmul_(z, differences[0], value=self.predict.lead)
            both = z * share if self.predict.rest else z
            for weight, difference in zip(self.predict.rest, differences, strict=False):
                moved.addcmul_(both, difference, value=weight)
        out = x.mul_(self.scale).add_(moved) if self.correct else torch.add(moved, x, alpha=self.scale)
        return out, Moved(moved, denoised, differences[: self.keep], state.noise)

    def _trust(self, differences: Sequence[Tensor], found: Tensor) -> tuple[Tensor, Tensor]:
        """z and s, (B, 1, ...), from rho^2; s where there is something foretold."""
        d, variance = differences[0], self.node.nsr**2
        expected = (TRUSTED * self.surprise) ** 2 * variance * d[0].numel()
        found = found.clamp(TINY, NOISIEST)
        further = found.sub(1).clamp_(min=0)
        allowed = found.reciprocal().sub(1).clamp_(min=self.data_std**2 / variance)
        came = _size(d).square()
        if not self.foretold:
            off_path = further.mul_(1 / SLACK**2).add_(1)
            return allowed.mul_(expected).div_(came.clamp(min=TINY)).div_(off_path).clamp_(max=1), came
        change = differences[1] * self.foretold[0]
        for weight, difference in zip(self.foretold[1:], differences[2:], strict=False):
            change.add_(difference, alpha=weight)
        along, size = Inner(d, None).dot(d, change), _size(change).square().clamp_(min=TINY)
        missed = (came + size).sub_(along, alpha=2).clamp_(min=TINY)  # |d - change|^2
        along.div_(1 - SLACK).clamp_(min=0)
        grown = (came - size).clamp_(min=0)
        goes_on = along / size.addcmul(found.square(), grown)
        goes_on.addcdiv_(allowed, missed, value=expected)
        most = torch.maximum(missed, came.mul_(SLACK))  # u is |d - change|^2 over this
        z = goes_on.mul_(most).div_(torch.addcmul(most, further, missed, value=1 / SLACK**2)).clamp_(max=1)
        return z, along.div(size).clamp_(max=1)


def _size(x: Tensor) -> Tensor:
    """The norm of each sample of (B, *), as (B, 1, ...)."""
    size: Tensor = torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)), keepdim=True)
    return size
