"""The core that every solver shares: one stage per model call, rows of numbers, one small step of tensor code.

A solver is a planner. `plan` compiles a schedule and a grid into one `Stage` per call of the model, in
float64 and before any tensor exists, so `len(plan) == nfe`. A stage says where the model is called and is
itself the pure step: `x, state = stage(state, x, denoised)`. A driver of any kind, our loop or somebody
else's, needs nothing more.

The linear methods move an accepted solution, the *anchor*, by rows: `scale * anchor + sum(w_j * past_j)`,
where `past` are the predictions so far, newest first. DDIM and DPM-Solver++ accept every x; Heun holds the
anchor over its first call; UniPC holds it over every call, corrects it with the answer, and moves on.

Stochastic methods are deterministic here: a stage says how much noise its driver adds to the x that it returned,
`x = x + stage.noise * z` with a unit Gaussian z for each sample. A plan may begin at a noisier node than the grid
(Heun's churn); the driver then adds the difference first, `renoise`.

Predictions come in three fields. Each solves the same ODE as d(x / scale) = prediction d(level / scale):

    field      scale          level    prediction
    data       sigma          alpha    denoised
    noise      alpha          sigma    (x - alpha * denoised) / sigma
    velocity   alpha + sigma  sigma    noise - denoised

The first-order row, scale_t / scale_s and level_t - scale_t / scale_s * level_s, is DDIM in all three.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
from torch import Tensor

from ...grid import Grid
from ...schedule import Node, Schedule

__all__ = [
    "Field",
    "LinearStage",
    "Row",
    "Solver",
    "Stage",
    "State",
    "choice",
    "euler_row",
    "in_field",
    "orders",
    "renoise",
    "scale_and_level",
    "spend",
]

Field = Literal["data", "noise", "velocity"]
T = TypeVar("T")


class Stage(Protocol):
    """One call of the model at `node`, and what to do with its answer. Pure, picklable, free of host syncs.

    `noise` is the standard deviation of the Gaussian noise that the driver adds to the x that is returned.
    """

    @property
    def node(self) -> Node: ...
    @property
    def noise(self) -> float: ...

    def __call__(self, state: Any, x: Tensor, denoised: Tensor) -> tuple[Tensor, Any]:
        """The next x and state. `state` is None at the first stage; x (B, *) and denoised alike, float32 or 64."""


class Solver(Protocol):
    """A frozen dataclass that plans.

    `grid` is the recommended one; `calls_per_step` the most calls that one step of it costs.
    """

    @property
    def grid(self) -> Grid: ...
    @property
    def calls_per_step(self) -> int: ...

    def plan(self, schedule: Schedule, nodes: Sequence[Node], nfe: int | None = None) -> Sequence[Stage]:
        """One stage per call. `nodes` are sorted; `nfe` asks for a total that the steps can be cut down to.

        A function of these and of the solver's fields: `planned` keeps what it returned, where all of them are numbers.
        """


class Row(NamedTuple):
    """A linear update: scale * anchor + sum(weights[j] * past[j]), newest prediction first."""

    scale: float
    weights: tuple[float, ...]

    def apply(self, anchor: Tensor, past: Sequence[Tensor]) -> Tensor:
        if len(past) < len(self.weights):
            raise ValueError(
                f"this stage needs the last {len(self.weights)} predictions but was given {len(past)}: "
                "plan again from the node you enter at"
            )
        out = anchor * self.scale
        for weight, prediction in zip(self.weights, past, strict=False):
            out = out.add_(prediction, alpha=weight)
        return out


class State(NamedTuple):
    """The anchor, or None while x itself is the anchor, and the predictions that later rows use."""

    anchor: Tensor | None
    past: tuple[Tensor, ...]


class LinearStage(NamedTuple):
    """`correct` replaces the accepted solution, if given; `move` leads from it to the next x.

    With `hold` the accepted solution stays the anchor and x is only where the model is called next;
    without, x is accepted. `keep` are the predictions that survive, by their place in `past`, newest first.
    """

    node: Node
    move: Row
    field: Field = "data"
    correct: Row | None = None
    hold: bool = False
    keep: Sequence[int] = ()
    noise: float = 0.0

    def __call__(self, state: State | None, x: Tensor, denoised: Tensor) -> tuple[Tensor, State]:
        anchor, past = state or State(None, ())
        past = (in_field(self.field, x, denoised, self.node), *past)
        if anchor is None:
            anchor = x
        if self.correct is not None:
            anchor = self.correct.apply(anchor, past)
        kept = tuple(past[i] for i in self.keep if i < len(past))
        return self.move.apply(anchor, past), State(anchor if self.hold else None, kept)


def in_field(field: Field, x: Tensor, denoised: Tensor, node: Node) -> Tensor:
    """The prediction of the table above."""
    if field == "data":
        return denoised
    noise = (x - node.alpha * denoised) / node.sigma
    return noise if field == "noise" else noise - denoised


def scale_and_level(field: Field, node: Node) -> tuple[float, float]:
    """The two columns of the table above."""
    _, alpha, sigma = node
    if field == "data":
        return sigma, alpha
    return (alpha, sigma) if field == "noise" else (alpha + sigma, sigma)


def departure(field: Field, s: Node) -> tuple[float, float]:
    """`scale_and_level` where a step begins; ValueError where the field has none, at a scale of 0."""
    scale, level = scale_and_level(field, s)
    if scale == 0:
        raise ValueError(
            f"the {field} field has no step away from alpha = 0 (time {s.time!r}): "
            'use field="velocity" for a flow, or start the grid below pure noise'
        )
    return scale, level


def euler_row(field: Field, s: Node, t: Node, weights: Sequence[float] = (1.0,)) -> Row:
    """From s to t with a weighted mean of predictions; weights (1,) is DDIM. Exact and finite at sigma_t = 0."""
    (scale_s, level_s), (scale_t, level_t) = departure(field, s), scale_and_level(field, t)
    scale = scale_t / scale_s
    gain = level_t - scale * level_s
    return Row(scale, tuple(w * gain for w in weights))


def renoise(s: Node, t: Node) -> tuple[float, float]:
    """The scale and the standard deviation of the noise that lead from s to the noisier t in distribution."""
    scale = t.alpha / s.alpha if s.alpha else 1.0
    added = t.sigma**2 - (scale * s.sigma) ** 2
    if added < 0:
        raise ValueError(f"noise can only be added: sigma / alpha would fall from {s.nsr:g} to {t.nsr:g}")
    return scale, math.sqrt(added)


def orders(nodes: Sequence[Node], order: int, final_order: int) -> list[int]:
    """The order of each step of a multistep method: `order`, lowered where it has to be or is asked to be.

    It warms up from 1 with the history; a step to sigma = 0, and one from alpha = 0, is of order 1; the
    step into the last noisy node is at most of `final_order`, the one before of `final_order` + 1, and so on.
    """
    last = len(nodes) - 2 - (nodes[-1].sigma == 0)  # the step into the last noisy node
    allowed = []
    history = 0
    for i, (s, t) in enumerate(pairwise(nodes)):
        history = history + 1 if math.isfinite(s.lam) else 0
        ends = not (math.isfinite(s.lam) and math.isfinite(t.lam))
        allowed.append(1 if ends else max(1, min(order, history, final_order + last - i)))
    return allowed


def choice(name: str, value: object, allowed: Sequence[object]) -> None:
    """ValueError unless `value` is one of `allowed`; True is no 1, and 2.0 no 2."""
    exact = isinstance(value, bool | np.bool_) or (isinstance(value, Real) and not isinstance(value, Integral))
    if not any(value == each and (not exact or type(value) is type(each)) for each in allowed):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}")


def spend(stages: list[T], nfe: int | None, steps: int) -> list[T]:
    """The stages of a plan that cannot be cut, if there are `nfe` of them."""
    if nfe is not None and nfe != len(stages):
        raise ValueError(f"a grid of {steps} steps costs this solver {len(stages)} calls; got nfe={nfe!r}")
    return stages
