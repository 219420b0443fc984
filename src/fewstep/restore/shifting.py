"""Restoration that begins at the degraded image: the chains of ResShift and Resfusion, for networks trained on them.

Both add noise and move the image x_0 towards the degraded y at once. In the numbers of their papers

    ResShift     x_t = x_0 + eta_t (y - x_0) + kappa sqrt(eta_t) e
    Resfusion    x_t = a_t x_0 + (1 - a_t) (y - x_0) + sqrt(1 - a_t^2) e,   a_t^2 = alphas_cumprod

which is one form, with c = y in the first and y / 2 in the second:

    x_t - c = alpha_t (x_0 - c) + sigma_t e     ResShift     alpha = 1 - eta,    sigma = kappa sqrt(eta)
                                                Resfusion    alpha = 2 a - 1,    sigma = sqrt(1 - a^2)

So x_0 - c is diffused as images are, on a schedule of its own, from noise where alpha is 0: ResShift's last step has
alpha = 0.001, Resfusion's is the one with a = 1/2, at which the paper's shortened chain starts. Every solver and grid
samples it unchanged, and

    x_0 = c + sample(centred(denoiser, c), noise, schedule=ResShift(), nfe=4)

Their own transitions are of DDIM's form with a noise of their own, v^2 = sigma_t^2 (1 - (l_t / l_s)^2), l the noise
level of the chain that they reverse: `Chain`. For ResShift l = sigma, which adds noise to an image that only moves; for
Resfusion l = sqrt(1 - a^2) / a, the table's, which also shrinks it.

Yue, Wang & Loy, ResShift: Efficient Diffusion Model for Image Super-resolution by Residual Shifting (2023), eq. (2),
(7) and (10); Shi et al., Resfusion: Denoising Diffusion Probabilistic Models for Image Restoration Based on Prior
Residual Noise (2023).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar, Literal

from torch import Tensor

from ..grid import Grid, time_uniform
from ..guidance.base import answer
from ..prediction import Denoiser, agreed
from ..sampling import check_tensor
from ..schedule import Discrete, Node, Schedule
from ..solvers.core.base import LinearStage, spend
from ..solvers.ddim import noisy

__all__ = ["Chain", "ResShift", "Resfusion", "centred"]


@dataclass(frozen=True)
class ResShift(Schedule):
    """The schedule of x_0 - y: alpha = 1 - eta, sigma = kappa sqrt(eta); the clock is the network's, 0 ... steps - 1.

    sqrt(eta) = sqrt(eta_min) (eta_max / eta_min)^(u / 2), u = (index / (steps - 1))^power; -1 is the image itself. The
    numbers are the authors' for 4x super-resolution; those of 4 steps are theirs too. eta_min is at most
    (0.04 / kappa)^2.
    """

    steps: int = 15
    kappa: float = 2.0
    power: float = 0.3
    eta_min: float = 0.0004
    eta_max: float = 0.999
    data_std: float | None = field(default=None, kw_only=True)
    uniform: ClassVar[Literal["lam", "time"]] = "time"
    t_clean: ClassVar[float] = -1.0

    def __post_init__(self) -> None:
        if self.steps < 2 or not self.kappa > 0 or not self.power > 0 or not 0 < self.eta_min < self.eta_max < 1:
            raise ValueError(
                f"ResShift needs steps of 2 or more, kappa and power above 0, 0 < eta_min < eta_max < 1; got {self!r}"
            )

    @property
    def t_max(self) -> float:
        return self.steps - 1.0

    @property
    def t_min(self) -> float:
        return 0.0

    def node(self, time: float) -> Node:
        if not -1 <= time <= self.t_max:
            raise ValueError(f"time must lie in [-1, {self.t_max:g}], the index of ResShift's step; got {time!r}")
        eta = self.eta_min * (time + 1)
        if time > 0:
            eta = self.eta_min * (self.eta_max / self.eta_min) ** ((time / self.t_max) ** self.power)
        return Node(time, 1 - eta, self.kappa * math.sqrt(eta))

    def time_at(self, lam: float) -> float:
        # kappa q = n (1 - q^2) for q = sqrt(eta), n = sigma / alpha: the stable root.
        n = math.exp(-lam)
        eta = (2 * n / (self.kappa + math.hypot(self.kappa, 2 * n))) ** 2
        if eta <= self.eta_min:
            return eta / self.eta_min - 1
        u = math.log(eta / self.eta_min) / math.log(self.eta_max / self.eta_min)
        time = float(self.t_max * u ** (1 / self.power))
        # Rounding must not put the noisiest level off the clock; a lam beyond it stays off.
        return min(time, self.t_max) if lam >= self.lam_range[0] else time

    def level(self, node: Node) -> float:
        """The noise level of the chain: its increments are independent of the image."""
        return node.sigma


@dataclass(frozen=True)
class Resfusion(Schedule):
    """The schedule of x_0 - y / 2: alpha = 2 a - 1, sigma = sqrt(1 - a^2), a^2 the table `alphas_cumprod`.

    The clock is the table's index, up to the last with a > 1/2, and -1 for the image; levels between as in `Discrete`.
    """

    alphas_cumprod: Sequence[float] = field(repr=False)
    data_std: float | None = field(default=None, kw_only=True)
    uniform: ClassVar[Literal["lam", "time"]] = "time"
    t_clean: ClassVar[float] = -1.0
    table: Discrete = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", Discrete(self.alphas_cumprod))
        object.__setattr__(self, "alphas_cumprod", self.table.alphas_cumprod)
        if self.t_max < 1:
            raise ValueError(f"alphas_cumprod must have two entries above 1/4; got {list(self.alphas_cumprod[:3])} ...")

    @property
    def t_max(self) -> float:
        return sum(entry > 1 / 4 for entry in self.alphas_cumprod) - 1.0

    @property
    def t_min(self) -> float:
        return 0.0

    def node(self, time: float) -> Node:
        if not -1 <= time <= self.t_max:
            raise ValueError(f"time must lie in [-1, {self.t_max:g}], where a > 1/2; got {time!r}")
        _, a, sigma = self.table.node(time)
        return Node(time, 2 * a - 1, sigma)

    def time_at(self, lam: float) -> float:
        # 1 - a^2 = n (2 a - 1)^2 for n = (sigma / alpha)^2, and 1 - a without its cancellation.
        n = math.exp(-2 * lam)
        root = math.sqrt(1 + 3 * n)
        a, missing = (2 * n + root) / (1 + 4 * n), n / (1 + 2 * n + root)
        time = self.table.time_at(math.log(a / math.sqrt(missing * (1 + a))))
        # Rounding must not put the noisiest level off the clock; a lam beyond it stays off.
        return min(time, self.t_max) if lam >= self.lam_range[0] else time

    def level(self, node: Node) -> float:
        """The noise level of the chain: the table's own."""
        return self.table.node(node.time).nsr


@dataclass(frozen=True)
class Chain:
    """The transitions of the papers, of `ResShift` and `Resfusion` schedules: ancestral sampling of their chains.

    Cost: 1 call per step. Order: 1. At the network's own times: grid=range(steps - 1, -2, -1).
    """

    grid: ClassVar[Grid] = time_uniform
    calls_per_step: ClassVar[int] = 1

    def plan(self, schedule: Schedule, nodes: Sequence[Node], nfe: int | None = None) -> list[LinearStage]:
        if not isinstance(schedule, ResShift | Resfusion):
            raise ValueError(f"Chain is for the schedules ResShift and Resfusion; got {schedule!r}: use DDIM(eta=1.0)")
        level = schedule.level
        stages = [noisy(s, t, 1 - (level(t) / level(s)) ** 2) for s, t in pairwise(nodes)]
        return spend(stages, nfe, len(nodes) - 1)


@dataclass(frozen=True, eq=False)
class Centred:
    """What `centred` returns."""

    denoiser: Denoiser
    centre: Tensor
    schedule: Schedule | None

    def __call__(self, x: Tensor, t: float) -> Tensor:
        if self.centre.shape[1:] != x.shape[1:] or len(self.centre) not in (1, len(x)):
            raise ValueError(
                f"centre must be one image for all or one a sample, (1, *) or (B, *), for x of shape {tuple(x.shape)}; "
                f"got {tuple(self.centre.shape)}"
            )
        return answer(self.denoiser, x + self.centre, t) - self.centre


def centred(denoiser: Denoiser, centre: Tensor) -> Denoiser:
    """The denoiser of x_0 - centre, from one of x_0 that is given x_t whole: y for `ResShift`, y / 2 for `Resfusion`.

    `denoiser(x, t)` has y as its condition in itself; `centre` is (B, *) or (1, *). TypeError or ValueError for one
    that is not finite, floating point and of rank 2 or more; at a call, for one that does not fit x.
    """
    if not callable(denoiser):
        raise TypeError(f"denoiser must be a function denoiser(x, t); got {type(denoiser).__name__}")
    check_tensor("centre", centre, True)
    return Centred(denoiser, centre, agreed((denoiser,)))
