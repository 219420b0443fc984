"""EVODiff as printed: Algorithm 1 of the paper in data prediction, where f(x) = x / sigma.

A step s -> t with the predictions m_0 at s and m_1 at p, the node before; n = sigma / alpha:

    symbol      meaning
    h           kappa_t - kappa_s, kappa = 1 / n
    x_E         line 3, DDIM: f(x_E) = f(x) + h m_0
    r           (lam_s - lam_p) / (lam_t - lam_s)

    line 4-5    f(x^) = f(x_E) + h^2 / 2 B_l,   B_l = (m_0 - m_1) / (r h)
    call        m_t = D(x^, t),   B_s = (m_t - m_0) / h
    line 6      eta = S(|<B_l - B_s, B_l> / <B_l - B_s, B_l - B_s>|),   S the sigmoid   (4.19)
    line 7      B = eta / 2 B_s + (1 - eta / 2) B_l
    line 8      zeta = S(|zeta*| - mu),   zeta* = -<D, P~> / (sigma_s h <D, D>)         (4.16)
                D = m_t - m_0,   P~ / sigma_s = 2 f(x^) - h (m_0 + m_t)
    line 9      f(x_t) = f(x_E) + h^2 / 2 zeta B

Inner products run over whole samples, as the print's vec() says. What the print leaves open, and our choice:

- Line 4, zeta = r h with "r such as the log-SNR ratio", names a number that line 5 does not use. We read it as
  the length over which B_l is a difference, r h. Then line 5 is DPM-Solver++(2M), and consistent.
- The intermediate point s_i has no call of its own. We take d(s_i) = m_t; all F_theta(s_i, .) become B_s, and P
  of (4.15) becomes the line above.
- mu, the `shift`, is 1/2, as in the authors' code.
- The last step into a noisy node has no call after it and keeps the prediction of line 5.

The ablations fix what lines 6 and 8 refine: `eta` replaces eta / 2, the share of B_s in line 7, and `zeta` that of
line 9. (Line 4's zeta is another number, the length of a difference.) With both fixed the step is linear: `re_multi`.

The print and the authors' code differ in the sign of the difference in B and in zeta, which the code divides by.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ...schedule import Node
from ..core.base import Row
from ..core.inner import Inner, sigmoid


class Second(NamedTuple):
    """The numbers of a second-order step."""

    gain: float  # sigma_t h / 2 = alpha_t (1 - n_t / n_s) / 2
    r: float
    sigma: float  # at t
    h: float
    eta: float | None  # instead of eta / 2; None: refined, line 6
    zeta: float | None  # None: refined, line 8
    shift: float


class State(NamedTuple):
    """The last prediction and, over a predicted step, h B_l."""

    m: Tensor
    slope: Tensor | None = None


class Stage(NamedTuple):
    """`correct` the step into this node, then `move` on linearly, with a `predict`ed slope on top."""

    node: Node
    channel_dim: int | None  # where channels are; the print does not measure them apart
    correct: Second | None
    move: Row | None  # None: the run ends here, with the corrected state
    predict: Second | None
    noise: float = 0.0

    def __call__(self, state: State | None, x: Tensor, denoised: Tensor) -> tuple[Tensor, State]:
        state = state or State(denoised)
        if self.correct is not None:
            x = _correct(self.correct, state, x, denoised)
        if self.move is not None:
            x = self.move.apply(x, (denoised, state.m))
        if self.predict is None:
            return x, State(denoised)
        slope = (denoised - state.m).div_(self.predict.r)
        return x.add_(slope, alpha=self.predict.gain), State(denoised, slope)

    def weights(self, state: State | None, x: Tensor, denoised: Tensor) -> tuple[Tensor, Tensor] | None:
        """eta and zeta of each sample, of the correction made here; None where there is none."""
        if self.correct is None or state is None:
            return None
        half_eta, zeta = _weights(self.correct, state, x, denoised)
        return half_eta * 2, zeta


def _correct(step: Second, state: State, x: Tensor, m_t: Tensor) -> Tensor:
    slope = _slope(state)
    change = m_t - state.m
    half_eta, zeta = _weights(step, state, x, m_t)
    # x_t = x^ + gain (zeta B - B_l), in which x^ = x_E + gain B_l
    turned = zeta * half_eta
    x = x.addcmul(turned, change, value=step.gain)
    return x.addcmul_(zeta.sub(turned).sub_(1), slope, value=step.gain)


def _weights(step: Second, state: State, x: Tensor, m_t: Tensor) -> tuple[Tensor, Tensor]:
    """Lines 6 and 8: eta / 2 and zeta, of each sample."""
    inner, slope, change = Inner(x, None), _slope(state), m_t - state.m
    if step.eta is None:
        half_eta = sigmoid(inner.project(slope, slope - change).abs_()).div(2)
    else:
        half_eta = _constant(x, step.eta)
    if step.zeta is None:
        reach = (state.m + m_t).sub_(x, alpha=2 / (step.sigma * step.h))  # -P~ / (sigma_s h)
        zeta = sigmoid(inner.project(reach, change).abs_().sub_(step.shift))
    else:
        zeta = _constant(x, step.zeta)
    return half_eta, zeta


def _slope(state: State) -> Tensor:
    if state.slope is None:
        raise ValueError("this stage corrects a step that was not predicted: plan again from its node")
    return state.slope


def _constant(x: Tensor, value: float) -> Tensor:
    """`value` in the shape of an inner product over whole samples."""
    return x.new_full((len(x), *(1 for _ in x.shape[1:])), value)


def second(nodes: Sequence[Node], i: int, last: int, **fixed: Any) -> Second:
    """The numbers of the step from node i; `last`, the last noisy node, is not needed."""
    p, s, t = nodes[i - 1 : i + 2]
    return Second(
        gain=t.alpha * (1 - t.nsr / s.nsr) / 2,
        r=(s.lam - p.lam) / (t.lam - s.lam),
        sigma=t.sigma,
        h=1 / t.nsr - 1 / s.nsr,
        **fixed,
    )


def final(s: Node, t: Node) -> Row | None:
    """The step into the last noisy node has no rule of its own."""
    return None
