"""The exponential integrators of the DPM-Solver family: the rows of one step, from several calls or several steps.

For the step s -> t let h = lam_t - lam_s, let m_0 be the prediction at s and m_k that at lam_s + r_k h (r_k > 0
inside the step, r_k < 0 before it), psi_k = psi(k, z) the exponential remainders, and

    field   z     L         m
    data    -h    alpha_t   denoised      DPM-Solver++
    noise    h    sigma_t   noise         DPM-Solver

    order 1   x_t = (scale_t / scale_s) x - L (e^z - 1) m_0                       (DDIM)
    order 2   ... - L (e^z - 1) / 2 D_1                                           "midpoint"
              ... - L psi_1 D_1                                                   "taylor"
    order 3   ... - L psi_1 E_1 - L psi_2 E_2
    D_k = (m_k - m_0) / r_k
    E_1 = (r_2 D_1 - r_1 D_2) / (r_2 - r_1),   E_2 = 2 (D_2 - D_1) / (r_2 - r_1)

E_1 and E_2 are h and h^2 times the derivatives at s of the parabola through three predictions.

Multistep (2M, 3M): m_1 and m_2 are the predictions of the two steps before. The authors' third-order step, which
diffusers and k-diffusion share, takes half of E_2, for both variants: a local error of order h^3 that leaves
3M of second order. We follow it.

Single step (2S, 3S): the calls after the first are made inside the step, each where the row before has led:

    2S   s_1 by order 1,                    t by order 2 from m_1
    3S   s_1 by order 1, s_2 by order 2 "taylor" from m_1, t by order 2 "taylor" from m_2      "midpoint"
                                                           t by order 3 from m_1 and m_2       "taylor"

Lu et al., DPM-Solver (2022), Algorithms 1-2 and Appendix B (whose "taylor" steps are the authors' code's);
Lu et al., DPM-Solver++ (2022), Algorithms 1-2. "taylor" is called "heun" in diffusers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np

from ...schedule import Node
from .base import LinearStage, Row, euler_row, scale_and_level

__all__ = ["NEAREST", "Variant", "calls_of_steps", "combine", "distances", "multistep_row", "psi", "single_step"]

Exponential = Literal["data", "noise"]
Variant = Literal["midpoint", "taylor"]


def psi(k: int, z: float) -> float:
    """The k-th exponential remainder, sum over j >= 1 of z^j / (j + k)!.

    psi(1, z) = (e^z - 1) / z - 1 and psi(k + 1, z) = psi(k, z) / z - 1 / (k + 1)!: the weights of the terms of
    a Taylor expansion under an exponential. The recursion cancels for short steps; the series does not.
    """
    if abs(z) < 1:
        total, term = 0.0, 1 / math.factorial(k)
        for j in range(1, 20):  # 1 / 20! is below one unit in the last place
            term *= z / (j + k)
            total += term
        return total
    value = math.expm1(z) / z - 1
    for i in range(2, k + 1):
        value = value / z - 1 / math.factorial(i)
    return value


def combine(scale: float, level: float, z: float, r: Sequence[float], variant: Variant, bend: float = 1.0) -> Row:
    """The row above, for m_0 and the predictions at `r` in this order; `level` is L, `bend` multiplies E_2."""
    first, *others = np.eye(1 + len(r))  # predictions as basis vectors: a formula on them is a row of weights
    d = [(other - first) / distance for other, distance in zip(others, r, strict=True)]
    total = math.expm1(z) * first
    if len(r) == 1:
        total += (math.expm1(z) / 2 if variant == "midpoint" else psi(1, z)) * d[0]
    elif len(r) == 2:
        e1 = (r[1] * d[0] - r[0] * d[1]) / (r[1] - r[0])
        e2 = 2 * (d[1] - d[0]) / (r[1] - r[0])
        total += psi(1, z) * e1 + bend * psi(2, z) * e2
    return Row(scale, tuple(float(-level * weight) for weight in total))


PUBLISHED_BEND = 0.5  # of the multistep method, see above
NEAREST = 0.01  # r of a second call inside a step: the slope has 1 / r times float32's rounding, 1e-5 of a prediction


def multistep_row(field: Exponential, nodes: Sequence[Node], order: int, variant: Variant) -> Row:
    """The step between the last two nodes from predictions at the one before it and earlier ones, newest first."""
    s, t = nodes[-2:]
    if order == 1:
        return euler_row(field, s, t)
    return combine(*_exponent(field, s, t), distances(nodes, order), variant, PUBLISHED_BEND)


def distances(nodes: Sequence[Node], order: int) -> list[float]:
    """r_1 ... r_(order - 1) of the nodes before the step between the last two."""
    s, t = nodes[-2:]
    return [(nodes[-2 - k].lam - s.lam) / (t.lam - s.lam) for k in range(1, order)]


def single_step(field: Exponential, points: Sequence[Node], variant: Variant) -> list[LinearStage]:
    """The step from the first to the last of `points`, with a call at each but the last: order 1, 2 or 3."""
    s, *_, t = points
    stages = []
    for i, (here, there) in enumerate(pairwise(points)):
        if i == 0:
            move = euler_row(field, s, there)
        else:
            whole = i < 2 or variant == "taylor"  # 3S "midpoint" moves to t on its newest slope alone
            used = points[1 : i + 1] if whole else points[i : i + 1]
            r = [(p.lam - s.lam) / (there.lam - s.lam) for p in used]
            scale, weights = combine(*_exponent(field, s, there), r, variant if len(points) == 3 else "taylor")
            oldest, *newer = weights
            move = Row(scale, (*reversed(newer), *[0.0] * (i - len(used)), oldest))
        held = there is not t
        stages.append(LinearStage(here, move, field, hold=held, keep=range((i + 1) * held)))
    return stages


def _exponent(field: Exponential, s: Node, t: Node) -> tuple[float, float, float]:
    """scale_t / scale_s, L and z."""
    (scale_s, _), (scale_t, level) = scale_and_level(field, s), scale_and_level(field, t)
    h = t.lam - s.lam
    return scale_t / scale_s, level, -h if field == "data" else h


def calls_of_steps(nodes: Sequence[Node], order: int, final_order: int, nfe: int | None) -> list[int]:
    """The calls, and so the order, of each single step: `order`, lowered where it has to be or is asked to be.

    A step to sigma = 0, and one from alpha = 0, is of order 1; the step into the last noisy node is at most of
    `final_order`, the one before of `final_order` + 1, and so on. A smaller `nfe` lowers the last steps first.
    With `final_order` 2 these are the packings of the DPM-Solver paper: 3, 3, ..., 2, 1 or 3, ..., 1 or 3, ..., 2.
    """
    steps = len(nodes) - 1
    last = steps - 1 - (nodes[-1].sigma == 0)  # the step into the last noisy node
    calls = [
        min(order, final_order + last - i) if math.isfinite(s.lam) and math.isfinite(t.lam) else 1
        for i, (s, t) in enumerate(pairwise(nodes))
    ]
    excess = 0 if nfe is None else sum(calls) - nfe
    if not 0 <= excess <= sum(calls) - steps:
        raise ValueError(f"a grid of {steps} steps costs this solver {steps} to {sum(calls)} calls; got nfe={nfe!r}")
    for i in reversed(range(steps)):
        cut = min(excess, calls[i] - 1)
        calls[i] -= cut
        excess -= cut
    return calls
