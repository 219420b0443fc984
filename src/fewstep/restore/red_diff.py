"""RED-Diff: the image that agrees with a measurement, and with what a denoiser makes of it at every noise level.

For y = A x_0 + noise, and at each level x = alpha mu + sigma e with fresh e, one step of Adam along

    A^T (A mu - y) / noise^2 + weight (mu - D(x))

The paper's second term is w_t (e^ - e), e^ the predicted noise; as e^ - e = alpha (mu - D) / sigma, its weights by SNR,
w_t = w sigma / alpha, are one weight for all levels of the difference of images: RED, regularisation by denoising.
There is no gradient through the network.

Held at one level n = sigma / alpha it converges to the mu where the mean of that is 0. For x_0 ~ N(m, S)

    mu = m + (A^T A / noise^2 + P)^-1 A^T (y - A m) / noise^2,   P = weight n^2 (S + n^2)^-1

while the posterior's mean has P = S^-1: so it is biased, and one image, no sample. The weight 1 / n^2 has the gradient
of the log density of the image with noise n, P = (S + n^2)^-1, which comes to the posterior's mode as n falls.

Mardani, Song, Kautz & Vahdat, A Variational Perspective on Solving Inverse Problems with Diffusion Models (2023),
Algorithm 1; Romano, Elad & Milanfar, The Little Engine That Could (2017).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..answers import DenoiserError
from ..arguments import number
from ..grid import GridFunction
from ..guidance.base import answer
from ..prediction import Denoiser, schedule_of
from ..sampling import check_tensor, plan, step_noise
from ..schedule import Node, Schedule
from ..solvers import EVODiff
from .measurement import check_derivative, check_measurement, linearised, lone
from .posterior import posterior

__all__ = ["red_diff"]

NFE = 100
WEIGHT = 0.25  # the paper's, beside |A mu - y|^2 / 2 without the noise
RATE, MOMENTA = 0.1, (0.9, 0.99)  # the authors' Adam


def red_diff(
    denoiser: Denoiser,
    operator: Any,
    y: Tensor,
    *,
    noise: float,
    schedule: Schedule | None = None,
    seeds: Iterable[int],
    nfe: int = NFE,
    grid: GridFunction | Iterable[float] | None = None,
    weight: float | Callable[[Node], float] | None = None,
    rate: float = RATE,
    start: Tensor | None = None,
) -> Tensor:
    """The image (B, *) for measurements `y`, (B, *), by `nfe` steps of Adam.

    Args:
        denoiser, operator, y, noise, schedule: as in `restore.posterior`.
        seeds: one integer a sample, of the noise of its levels.
        grid: the levels, one a step, from noisy to clean as the paper anneals them; EVODiff's if not given. The last
            node, where a run would end, is not called at.
        weight: of the denoiser's residual, or a function of the level; 0.25 / noise^2, the paper's, if not given.
            `lambda node: 1 / node.nsr**2` is the one that comes to the posterior's mode.
        rate: of Adam, in units of x a step.
        start: (B, *); r^2 A^T (r^2 A A^T + noise^2)^-1 y if not given, the mean of x_0 given y for data of mean 0 and
            variance r^2 = `schedule.data_scale`^2: near A_dagger(y) where A keeps more than noise / r of an image, and
            without the noise that A_dagger makes larger where it keeps less.

    Cost: one call a step, no gradient of the denoiser; two tensors of x's size, beside x. An optimum, not a sample.
    Raises what `posterior` does; DenoiserError if the end is not finite.
    """
    found = schedule_of(denoiser, schedule)
    if not _number(rate) or rate == 0:
        raise ValueError(f"rate must be a positive, finite number, of units of x a step; got rate={rate!r}")
    if weight is not None and not callable(weight) and not _number(weight):
        raise ValueError(
            f"weight must be a finite number, 0 or more, a function of the level, or None; got weight={weight!r}"
        )
    shape = check_measurement(operator, y, noise)
    noise = float(noise)
    if start is None:
        if shape is None:
            raise TypeError("start is needed, as this operator has no adjoint to begin from: give an image (B, *)")
        of_variance = posterior(_mean, operator, y, noise=noise, schedule=found, method="proximal")
        start = of_variance(y.new_zeros(len(y), *shape), found.t_max)
    check_tensor("start", start, None)
    if len(y) not in (1, len(start)) or (shape is not None and start.shape[1:] != shape):
        due = "*" if shape is None else ", ".join(map(str, shape))
        raise ValueError(
            f"start must be an image a measurement, ({len(y)}, {due}); got {tuple(start.shape)}: resize or expand it, "
            "or, if y is one measurement, give y[None]"
        )
    nodes, _ = plan(found, EVODiff(), nfe=nfe, grid=grid)
    given = WEIGHT / noise**2 if weight is None else weight
    mean = start.to(torch.promote_types(start.dtype, torch.float32), copy=True)
    adam = torch.optim.Adam([mean], lr=float(rate), betas=MOMENTA)
    draw = step_noise(seeds, mean)
    with torch.no_grad():
        for node in nodes[:-1]:
            x = (node.alpha * mean + node.sigma * draw(node)).to(start.dtype)
            denoised = answer(denoiser, x, node.time).to(mean.dtype)
            at = linearised(operator, mean)
            if node is nodes[0]:
                if at.measured.shape[1:] != y.shape[1:]:
                    misfit = f"y must have the shape of A(start), {tuple(at.measured.shape)}; got {tuple(y.shape)}"
                    raise ValueError(lone(y) if at.measured.shape[1:] == y.shape else misfit)
                check_derivative(operator, at)
            pull = given(node) if callable(given) else given
            if callable(given) and not _number(pull):
                raise ValueError(
                    f"weight must return a finite number, 0 or more, of each level; got {pull!r} of {node}"
                )
            mean.grad = at.adjoint(at.measured - y.to(mean.dtype)) / noise**2 + float(pull) * (mean - denoised)
            adam.step()
    if not bool(mean.isfinite().all()):
        raise DenoiserError("RED-Diff ended at NaN or inf: the denoiser returned such, or the rate is too large")
    return mean.to(start.dtype)


def _mean(x: Tensor, t: float) -> Tensor:
    """Of images of which nothing is known but their variance."""
    return torch.zeros_like(x)


def _number(value: Any) -> bool:
    return 0 <= number(value) < math.inf
