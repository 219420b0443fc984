"""Solvers as samplers of k-diffusion: the convention that ComfyUI, Forge and many training repositories share.

    from fewstep.integrations.kdiffusion import get_sigmas_focused, sample_evodiff

    sigmas = get_sigmas_focused(10, 0.03, 14.6, device=x.device)
    image = sample_evodiff(model, x * sigmas[0], sigmas, extra_args={"cond": c})

`model(x, sigma, **extra_args)` returns the denoised x at the noise levels `sigma`, (B,): k-diffusion's wrappers, an
EDM network, ComfyUI's guided model. `sigmas` fall from the noise level of x to, mostly, 0; its N + 1 levels are N calls
for a solver of one call a step. Nothing of k-diffusion is needed here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..grid import focused
from ..sampling import trajectory
from ..schedule import EDM, Flow, Node, Schedule
from ..solvers import EVODiff, RESingle, Solver, Tuned, UniPC

__all__ = ["get_sigmas_focused", "get_sigmas_tuned", "sample_evodiff", "sampler"]


LONGEST = 3.0  # half log-SNR, the first step of an inversion by what extrapolates data over it: docs/inversion.md


def sampler(solver: Solver, *, flow: bool = False) -> Callable[..., Tensor]:
    """`solver` as a function of k-diffusion: sample(model, x, sigmas, extra_args=None, callback=None, disable=None).

    It takes `seeds=` besides, one integer a sample, for stochastic solvers.

    Args:
        solver: any of fewstep's. EVODiff's sigmas must fall; those of a linear solver may rise (inversion). One that
            `fewstep.tune` found serves its model on any schedule, on its own levels: `get_sigmas_tuned`.
        flow: whether x = (1 - sigma) x_0 + sigma noise, with sigma in [0, 1], as ComfyUI has Flux, SD3 or Wan; else
            x = x_0 + sigma noise.

    The function returns the state at the last sigma, and x itself if there is one sigma or none. A sigma that repeats
    the one before is left out: the step to it would change nothing. `callback` is told, once a step, the place "i" of
    its "sigma", and of its first call "x", the level "sigma_hat" and what was "denoised". A bar is shown, by tqdm,
    unless `disable` is true, or None where stderr is not a terminal. The sigmas are read once, so that an accelerator
    never waits.

    Raises:
        ValueError: sigmas that are not one falling or rising list, begin at 0, are above 1 on a flow, or rise from far
            below the rest (as ComfyUI's FlipSigmas has them, from 1e-4) where the solver cannot follow.
        fewstep.DenoiserError: the model's answer is not a tensor like x, or not finite.
    """
    if isinstance(solver, Tuned):
        solver = replace(solver, schedule=None)
    return partial(_sample, solver, flow)


def _sample(
    solver: Solver,
    flow: bool,
    model: Callable[..., Tensor],
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], object] | None = None,
    disable: bool | None = None,
    *,
    seeds: Iterable[int] | None = None,
) -> Tensor:
    kept = _distinct(sigmas)
    if len(kept) < 2:
        return x
    nodes = tuple(_node(sigma, flow) for sigma in kept.values())
    _check_first(solver, nodes)
    given = {} if extra_args is None else extra_args

    def denoiser(x: Tensor, t: float) -> Tensor:
        return model(x, torch.full((len(x),), t, dtype=sigmas.dtype, device=x.device), **given)

    schedule: Schedule = Flow() if flow else EDM()
    steps = trajectory(denoiser, x, nodes, solver=solver, schedule=schedule, seeds=seeds)
    places, calls = list(kept)[:-1], len(solver.plan(schedule, nodes))
    with _bar(len(places), disable) as bar:
        for step in steps:
            begun, rest = divmod(step.index * len(places), calls)
            if rest < len(places):  # the first call of its step, or about that where steps differ in calls
                if callback is not None:
                    i, level = places[begun], sigmas.new_full((), step.node.sigma)
                    callback({"i": i, "x": x, "sigma": sigmas[i], "sigma_hat": level, "denoised": step.denoised})
                if bar is not None:
                    bar.update()
            x = step.x
    return x


sample_evodiff = sampler(EVODiff())


def get_sigmas_focused(
    n: int,
    sigma_min: float,
    sigma_max: float,
    device: str | torch.device = "cpu",
    *,
    flow: bool = False,
    data_std: float | None = None,
) -> Tensor:
    """EVODiff's own levels as k-diffusion's `get_sigmas_karras` has its: n falling from sigma_max to sigma_min, and 0.

    float32, (n + 1,). They are `fewstep.focused`, for sigmas that mean the same as in `sampler`
    and data of standard deviation `data_std`, which `EVODiff(data_std=...)` wants to know as well. None asks the range,
    which must be the model's: 0.5, or more where it ends at visible noise.
    """
    low, high = (_ratio(sigma) for sigma in (sigma_min, sigma_max)) if flow else (sigma_min, sigma_max)
    ratios = (node.sigma for node in focused(EDM(low, high, data_std=data_std), n, to_zero=True))
    return torch.tensor([r / (1 + r) if flow else r for r in ratios], dtype=torch.float32, device=device)


def get_sigmas_tuned(
    tuned: Tuned, n: int, schedule: Schedule, device: str | torch.device = "cpu", *, flow: bool = False
) -> Tensor:
    """The levels of a tuned plan of n calls, on the `schedule` that it was tuned on; float32, (n + 1,)."""
    ratios = [node.nsr for node in tuned.nodes(schedule, n)]
    return torch.tensor([r / (1 + r) if flow else r for r in ratios], dtype=torch.float32, device=device)


def _distinct(sigmas: Tensor) -> dict[int, float]:
    """The levels that differ from the one before, by their place."""
    if not isinstance(sigmas, Tensor) or sigmas.ndim != 1 or not sigmas.is_floating_point():
        raise TypeError(f"sigmas must be a tensor of floating point of one dimension; got {sigmas!r}")
    values = sigmas.tolist()
    return {i: value for i, value in enumerate(values) if i == 0 or value != values[i - 1]}


def _node(sigma: float, flow: bool) -> Node:
    if flow and sigma > 1:
        raise ValueError(f"the sigmas of a flow must lie in [0, 1]; got {sigma!r}: take those made for its model")
    return Node(sigma, 1 - sigma if flow else 1.0, sigma)


def _check_first(solver: Solver, nodes: Sequence[Node]) -> None:
    in_data = isinstance(solver, (UniPC, RESingle)) and solver.field == "data"
    long = LONGEST < nodes[0].lam - nodes[1].lam < math.inf
    if in_data and getattr(solver, "variant", None) != "bh1" and long:
        raise ValueError(
            f"{solver!r} goes far off in an inversion whose first step is as long as from sigma={nodes[0].sigma:g} to "
            f"{nodes[1].sigma:g}: take UniPC(order=3, field='noise'), named unipc-3-noise, or begin at the model's "
            "lowest sigma"
        )


def _ratio(sigma: float) -> float:
    """sigma / alpha of a flow, up to the end of its grids in log-SNR."""
    if not 0 < sigma <= 1:
        raise ValueError(f"the sigmas of a flow must lie in (0, 1]; got {sigma!r}")
    return min(_node(sigma, flow=True).nsr, math.exp(Flow.LAM_END))


def _bar(total: int, disable: bool | None) -> Any:
    if disable:
        return nullcontext()
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("a bar needs tqdm: pip install tqdm, or give disable=True") from error
    return tqdm(total=total, disable=disable)
