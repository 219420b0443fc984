"""EVODiff as published: the rule of the authors' code (EDM demo, commit 1811f9e), for any schedule and rank.

A step s -> t with the predictions m_0 at s and m_1 at p, the node before; n = sigma / alpha throughout:

    symbol      meaning
    x_E         DDIM, (sigma_t / sigma_s) x + alpha_t a m_0, with a = 1 - n_t / n_s
    r           (lam_s - lam_p) / (lam_t - lam_s)
    w           (1 - ((n_t + n_end) / (n_start + n_end))^2) / 2, from 0 to 1/2 over the run
    P(u, v)     <u, v> / <v, v> clipped to [-2, 2], over each sample and channel
    rho(u, v)   (1 - w) sqrt((n_t / n_s) / (n_s / n_p)) + w P(u, v), the share of v in u
    k           a / (2 r S(|rho(m_0, m_1)| / 4)), the predictor's gain; S is the sigmoid

    predict     D_1 = m_0 - rho(m_0, m_1) m_1,   x^ = x_E + alpha_t k D_1
    call        m_t = D(x^, t)
    correct     D_2 = m_t - rho(m_t, m_0) m_0
                eta = S(|P(r D_2 + D_1 / r, r D_2 - D_1 / r)| / 2) / 2
                B = (1 - eta) r D_2 - (eta / r) D_1
                zeta* = clip(k <D_1 - B, D_1> / <D_1, D_1>, -2, 2) / a
                zeta = S(|zeta*| - 1/2), in runs of more than 20 steps S(c (1/2 - |zeta*|))
                x_t = x_E + alpha_t a B / (2 zeta)
    c           S((2 - (n_t / n_s)^2) clip(<m_0, g> / <g, g>, -2, 2)), g = (m_0 - m_1) / (1 / n_t - 1 / n_s)

The first step is DDIM. The last step into a noisy node is, with q = n_t / n_s,

    x_t = (1 - sqrt(n_t n_s)) x_E + a (m_0 - d m_1) / 2,   d = 1 - sqrt(q) / 2 if q < 1/2 else 1 - sqrt(q - 1/2) / 2.

Coded with v = D_2 - D_1 / r^2. Then P(..) = 1 + (2 / r^2) <v, D_1> / <v, v>; with turn = 1 - 2 eta and
y = r^2 <v, D_1> / <D_1, D_1>, B = (r / 2) (1 + turn) v + (turn / r) D_1 and <D_1 - B, D_1> / <D_1, D_1> =
1 - (turn (y + 2) + y) / (2 r): no difference of nearly equal inner products. And the correction is a
difference, x_t = x^ - alpha_t k D_1 + alpha_t a B / (2 zeta), so that an edit of x^ survives it.

Where we differ. The code clips r S(..) to [r / 4, 3 r / 2], which S >= 1/2 makes idle: left out. It knows EDM
only, where n = sigma = t; we read every one of its t and sigma as n, so that a run in x / alpha is the same
run on every schedule. Its last step darkens by 1 - sqrt(n_t n_s), which is small on EDM's range and is not
on a flow's grid or in a run that stops early: where alpha varies, or it would darken by half, the last step is
DDIM. 0 / 0, which is NaN there, is the limit where there is one (P of collinear differences: 2), else 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...schedule import Node
from ..core.base import Row, euler_row
from ..core.inner import Inner, floored, sigmoid

CLIP = 2.0  # of every projection
TEMPERATURE = 0.25  # of the predictor's gain
SHIFT = 0.5  # mu of the paper's Algorithm 1
MOST_DARKENING = 0.5  # of the printed last step; EDM's ranges stay below 0.15
LONG_RUN = 20  # steps; beyond it zeta is tempered by c


class Second(NamedTuple):
    """The numbers of a second-order step."""

    alpha: float  # at t
    a: float
    r: float
    w: float
    base: float  # (1 - w) sqrt((n_t / n_s) / (n_s / n_p))
    h: float  # 1 / n_t - 1 / n_s
    slack: float  # 2 - (n_t / n_s)^2
    long_run: bool


class Pending(NamedTuple):
    """What the correction of a predicted step needs: D_1, 1 / S(|rho| / 4) and, in long runs, c."""

    d1: Tensor
    spread: Tensor
    temper: Tensor | None


class State(NamedTuple):
    """The last prediction, and the step that awaits its correction."""

    m: Tensor
    pending: Pending | None = None


class Stage(NamedTuple):
    """`correct` the step into this node, then `move` on linearly, with a `predict`ed slope on top."""

    node: Node
    channel_dim: int | None
    correct: Second | None
    move: Row | None  # None: the run ends here, with the corrected state
    predict: Second | None
    noise: float = 0.0

    def __call__(self, state: State | None, x: Tensor, denoised: Tensor) -> tuple[Tensor, State]:
        m0, (m1, pending) = denoised, state or State(denoised)
        if self.correct or self.predict:
            inner = Inner(x, self.channel_dim)
            share = inner.project(m0, m1).clamp_(-CLIP, CLIP)
            # Before anything large is alive.
            temper = _temper(self.predict, inner, m0, m1) if self.predict and self.predict.long_run else None
        if self.correct:
            if pending is None:
                raise ValueError("this stage corrects a step that was not predicted: plan again from its node")
            x = _correct(self.correct, inner, share, x, m1, m0, pending)
        if self.move is not None:
            x = self.move.apply(x, (m0, m1))
        if self.predict is None:
            return x, State(m0)
        pending = _predict(self.predict, share, m0, m1, temper)
        gain = self.predict.alpha * self.predict.a / (2 * self.predict.r)
        return x.addcmul_(pending.spread, pending.d1, value=gain), State(m0, pending)

    def weights(self, state: State | None, x: Tensor, denoised: Tensor) -> tuple[Tensor, Tensor] | None:
        """eta and zeta of each sample and channel, of the correction made here; None where there is none."""
        if self.correct is None or state is None or state.pending is None:
            return None
        inner = Inner(x, self.channel_dim)
        share = inner.project(denoised, state.m).clamp_(-CLIP, CLIP)
        _, turn, weight = _balance(self.correct, inner, share, state.m, denoised, state.pending)
        return (1 - turn) / 2, weight.reciprocal()


def _predict(step: Second, share: Tensor, m0: Tensor, m1: Tensor, temper: Tensor | None) -> Pending:
    rho = _rho(step, share)
    d1 = m0.addcmul(rho, m1, value=-1)
    spread = sigmoid(rho.abs().mul_(TEMPERATURE)).reciprocal()
    return Pending(d1, spread, temper)


def _correct(step: Second, inner: Inner, share: Tensor, x: Tensor, m0: Tensor, m_t: Tensor, pending: Pending) -> Tensor:
    v, turn, weight = _balance(step, inner, share, m0, m_t, pending)
    d1, spread, _ = pending
    turned = weight * turn
    x = x.addcmul(weight.add(turned), v, value=step.alpha * step.a * step.r / 4)
    return x.addcmul_(turned.sub_(spread), d1, value=step.alpha * step.a * 0.5 / step.r)


def _balance(
    step: Second, inner: Inner, share: Tensor, m0: Tensor, m_t: Tensor, pending: Pending
) -> tuple[Tensor, Tensor, Tensor]:
    """v, turn and 1 / zeta."""
    d1, spread, temper = pending
    v = m_t.addcmul(_rho(step, share), m0, value=-1).sub_(d1, alpha=step.r**-2)
    along = inner.dot(v, d1)
    # |P| / 2; its limit for collinear differences, v = 0, is the clip
    half = torch.full_like(along, 0.5).addcdiv_(along, inner.dot(v, v), value=step.r**-2)
    turn = sigmoid(half.nan_to_num_(CLIP).abs_().clamp_max_(CLIP / 2).neg_())
    y = torch.zeros_like(along).addcdiv_(along, floored(inner.dot(d1, d1)), value=step.r**2)
    bend = y.addcmul(y, turn).add_(turn, alpha=2)
    # zeta* = clip(k (1 - bend / (2 r)), -2, 2) / a with k = a spread / (2 r)
    k = 0.5 / step.r
    zeta = spread.addcmul(spread, bend, value=-k).abs_().clamp_max_(CLIP / (step.a * k))
    excess = torch.full_like(zeta, -SHIFT).add_(zeta, alpha=k)
    return v, turn, sigmoid(excess if temper is None else excess.mul_(temper).neg_()).reciprocal()


def _rho(step: Second, share: Tensor) -> Tensor:
    """rho(u, v), of which `share` is the clipped P(u, v)."""
    return torch.full_like(share, step.base).add_(share, alpha=step.w)


def _temper(step: Second, inner: Inner, m0: Tensor, m1: Tensor) -> Tensor:
    drift = (inner.project(m0, m0 - m1) * step.h).clamp_(-CLIP, CLIP)
    return sigmoid(drift.mul_(step.slack))


def second(nodes: Sequence[Node], i: int, last: int) -> Second:
    """The numbers of the step from node i, in a run whose last noisy node is `last`."""
    p, s, t = nodes[i - 1 : i + 2]
    start, end = nodes[0].nsr, nodes[last].nsr
    w = (1 - ((t.nsr + end) / (start + end)) ** 2) / 2
    q = t.nsr / s.nsr
    return Second(
        alpha=t.alpha,
        a=1 - q,
        r=(s.lam - p.lam) / (t.lam - s.lam),
        w=w,
        base=(1 - w) * math.sqrt(q / (s.nsr / p.nsr)),
        h=1 / t.nsr - 1 / s.nsr,
        slack=2 - q**2,
        long_run=last > LONG_RUN,
    )


def final(s: Node, t: Node) -> Row:
    """The step into the last noisy node: the printed one towards the clean end of EDM, DDIM elsewhere."""
    near_clean = math.sqrt(t.nsr * s.nsr) < MOST_DARKENING
    return printed_final(s, t) if s.alpha == t.alpha == 1 and near_clean else euler_row("data", s, t)


def printed_final(s: Node, t: Node) -> Row:
    """The authors' last step, which multiplies the image by 1 - sqrt(n_t n_s)."""
    q = t.nsr / s.nsr
    shrink = 1 - math.sqrt(t.nsr * s.nsr)
    share = 1 - math.sqrt(q if q < 0.5 else q - 0.5) / 2
    first = euler_row("data", s, t)
    half = first.weights[0] / 2
    return Row(shrink * first.scale, (shrink * first.weights[0] + half, -half * share))
