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
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..grid import Grid, checked, focused
from ..grid.base import closes
from ..sampling import Step, check_tensor, drive, step_noise
from ..schedule import EDM, Flow, Node, Schedule
from ..solvers import (
    DDIM,
    ERSDE,
    SEEDS,
    AnalyticDPM,
    EVODiff,
    RESingle,
    SASolver,
    SDEDPMSolverPP,
    Solver,
    Stage,
    Stochastic,
    Tuned,
    UniPC,
)
from ..solvers.core.base import renoise
from ..solvers.core.planned import planned

__all__ = ["History", "get_sigmas", "get_sigmas_focused", "get_sigmas_tuned", "sample_evodiff", "sampler"]


LONGEST = 3.0  # half log-SNR, the first step of an inversion by what extrapolates data over it: docs/inversion.md
ROUNDING = 1e-6  # by which sigma_max of a flow is above 1, in float32
KEPT = 2  # runs, so that a half that is kept can be gone on from once more
AHEAD = 4  # steps: no solver of one call a step looks further
SAME = 0.01  # of its size: what a state changes by on its way through a latent's units and half precision


class History:
    """What runs that end at visible noise leave to those that go on from there: give the same to both.

    A run goes on if its solver, its schedule and its first sigma are those of a run before and its x is what that one
    returned, but for 1 %: through two halves the result is that of a whole, with two exceptions. EVODiff's weights go
    by the mean length of all steps, which the first half does not know: an RMSE of up to 0.4 times its own error, in 6
    to 10 steps. And solvers may choose the order of the last steps, where the second half has no more than those. Else
    it starts afresh. It works for solvers of one call a step, while sigmas fall; of a tuned plan, which is of a whole
    run, each half is a run of its own. The last two runs are kept, each with the solver's state, on its device.
    """

    def __init__(self) -> None:
        self._left: deque[tuple[Solver, Schedule, tuple[Node, ...], Tensor, Any]] = deque(maxlen=KEPT)

    def leave(self, solver: Solver, schedule: Schedule, nodes: tuple[Node, ...], x: Tensor, state: Any) -> None:
        self._left.appendleft((solver, schedule, nodes, x, state))

    def take(self, solver: Solver, schedule: Schedule, start: Node, x: Tensor) -> tuple[tuple[Node, ...], Any]:
        """The nodes before `start`, and the solver's state there."""
        for *how, nodes, there, state in self._left:
            alike = how == [solver, schedule] and nodes[-1] == start
            alike = alike and (there.shape, there.device) == (x.shape, x.device)
            if alike and (there - x).norm() <= SAME * there.norm():
                return nodes[:-1], state
        return (), None


def sampler(solver: Solver, *, flow: bool = False, sigma_min: float | None = None) -> Callable[..., Tensor]:
    """`solver` as a function of k-diffusion: sample(model, x, sigmas, extra_args=None, callback=None, disable=None).

    Args:
        solver: any of fewstep's. EVODiff's sigmas must fall; those of a linear solver may rise (inversion). One that
            `fewstep.tune` found serves its model on any schedule, on its own levels: `get_sigmas_tuned`.
        flow: whether x = (1 - sigma) x_0 + sigma noise, with sigma in [0, 1], as ComfyUI has Flux, SD3 or Wan; else
            x = x_0 + sigma noise.
        sigma_min: the lowest sigma of the model's range, if it is no flow: what the scale of its data is read off,
            where EVODiff was not told it as `data_std`, and down to where its step to sigma = 0 foretells. Of a range
            of 0.03 the scale is nearly twice that of the default.

    The function returns the state at the last sigma, and x itself if there is one sigma or none. A sigma that repeats
    the one before is left out: the step to it would change nothing. Where sigmas that fall rise again (Restart, Xu et
    al., 2023), noise is added, so that the state is distributed as it should be there, and the rest is a run of its
    own. The sigmas are read once, so that an accelerator never waits.

    `callback` is told of every place "i" of `sigmas` but the last: of "x", the level "sigma_hat" and what was
    "denoised" at the first call of that step, before it is made, so that edits of both in place count. A place without
    a call, of a repeat or a rise, is told what the one before was. A bar is shown, by tqdm, unless `disable` is true,
    or None where stderr is not a terminal.

    It takes besides, as k-diffusion's stochastic samplers do:
        eta: how much noise is drawn on the way: by solvers that have an `eta` for that, or by `fewstep.Stochastic`.
        s_noise: a factor of all noise that is drawn.
        noise_sampler: noise_sampler(sigma, next_sigma) returns unit noise like x; or
        seeds: one integer a sample, and sample i draws from a generator of its own, at each level apart: a run in two
            halves draws what the whole one does.
        history: a `History`, of a run in two halves.

    Raises:
        ValueError: sigmas that are not one falling or rising list, begin at 0, are above 1 on a flow, or rise from far
            below the rest (as ComfyUI's FlipSigmas has them, from 1e-4) where the solver cannot follow.
        fewstep.DenoiserError: the model's answer is not a tensor like x, or not finite.
    """
    if isinstance(solver, Tuned):
        solver = replace(solver, schedule=None)
    if flow:
        return partial(_sample, solver, Flow())
    ends = {} if sigma_min is None else {"sigma_min": sigma_min, "sigma_max": max(EDM.sigma_max, 2 * sigma_min)}
    return partial(_sample, solver, EDM(**ends))


def sample_evodiff(
    model: Callable[..., Tensor],
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], object] | None = None,
    disable: bool | None = None,
    **options: Any,
) -> Tensor:
    """EVODiff's default as a function of k-diffusion, x = x_0 + sigma noise; for flows, and for the rest, `sampler`."""
    return _sample(EVODiff(), EDM(), model, x, sigmas, extra_args, callback, disable, **options)


def _sample(
    solver: Solver,
    schedule: Schedule,
    model: Callable[..., Tensor],
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], object] | None = None,
    disable: bool | None = None,
    eta: float | None = None,
    s_noise: float = 1.0,
    noise_sampler: Callable[[Tensor, Tensor], Tensor] | None = None,
    *,
    seeds: Iterable[int] | None = None,
    history: History | None = None,
) -> Tensor:
    flow = isinstance(schedule, Flow)
    values = _levels(sigmas, flow)
    pieces = _pieces(values)
    if len(values) < 2 or pieces == [[0]]:
        return x
    check_tensor("x", x, None)
    solver = _with_eta(solver, eta)
    dtype, working = x.dtype, torch.promote_types(x.dtype, torch.float32)
    nodes = [tuple(_node(values[i], flow) for i in piece) for piece in pieces]
    _check_first(solver, nodes[0])
    state: Any = None
    rises = nodes[0][1].lam < nodes[0][0].lam
    if isinstance(solver, Tuned) or solver.calls_per_step > 1 or len(pieces) > 1 or rises:
        history = None
    if history is None:
        plans = [planned(solver, schedule, checked(own)) if len(own) > 1 else () for own in nodes]
    else:
        (own,) = nodes
        before, state = history.take(solver, schedule, own[0], x.to(working))
        plan = planned(solver, schedule, checked((*before, *own, *_ahead(own, schedule))))
        plans = [plan[len(before) : len(before) + len(own) - 1]]
    noise = _noise(solver, nodes, plans, x, sigmas, s_noise, noise_sampler, seeds)
    given = {} if extra_args is None else extra_args

    def denoiser(x: Tensor, t: float) -> Tensor:
        return model(x, torch.full((len(x),), t, dtype=sigmas.dtype, device=x.device), **given)

    def tell(i: int, node: Node, x: Tensor, denoised: Tensor) -> None:
        if callback is not None:
            level = sigmas.new_full((), node.time)  # what the model is told
            callback({"i": i, "x": x, "sigma": sigmas[i], "sigma_hat": level, "denoised": denoised})
        if bar is not None:
            bar.update()

    ends = [*(piece[0] for piece in pieces[1:]), len(values) - 1]
    with _bar(len(values) - 1, disable) as bar:
        for run, (own, stages) in enumerate(zip(nodes, plans, strict=True)):
            x = x.to(working)
            if run:
                scale, added = renoise(nodes[run - 1][-1], own[0])
                x = x * scale + noise(nodes[run - 1][-1]) * added
            if stages:
                hear = _hearing([*pieces[run][:-1], ends[run]], _firsts(own, stages), tell)
                x, state = _last(drive(denoiser, x, own[0], stages, dtype, noise, False, state, hear))
            if history is None:
                state = None
            elif closes(schedule.data_std, own[-1], None):
                history.leave(solver, schedule, (*before, *own), x.to(working), state)
    return x.to(dtype)


def _noise(
    solver: Solver,
    nodes: Sequence[Sequence[Node]],
    plans: Sequence[Sequence[Stage]],
    x: Tensor,
    sigmas: Tensor,
    s_noise: float,
    noise_sampler: Callable[[Tensor, Tensor], Tensor] | None,
    seeds: Iterable[int] | None,
) -> Callable[[Node], Tensor]:
    """What draws noise like `x` for these runs: for each rise between two, and for each stage that adds some."""
    steps: list[tuple[float, float]] = []
    for run, (own, stages) in enumerate(zip(nodes, plans, strict=True)):
        if run:
            steps.append((nodes[run - 1][-1].sigma, own[0].sigma))
        levels = [*(stage.node.sigma for stage in stages), own[-1].sigma]
        if levels[0] != own[0].sigma:
            steps.append((own[0].sigma, levels[0]))
        steps += [pair for stage, pair in zip(stages, pairwise(levels), strict=True) if stage.noise]
    if not 0 <= s_noise < math.inf:
        raise ValueError(f"s_noise must be finite and at least 0, a factor of the noise; got s_noise={s_noise!r}")
    if noise_sampler is not None:
        if seeds is not None:
            raise ValueError("give noise_sampler or seeds, not both: each says where noise comes from")
        coming = iter(steps)

        def sampled(node: Node) -> Tensor:
            drawn = noise_sampler(*map(sigmas.new_tensor, next(coming)))
            if not isinstance(drawn, Tensor) or drawn.shape != x.shape:
                found = tuple(drawn.shape) if isinstance(drawn, Tensor) else type(drawn).__name__
                raise ValueError(f"noise_sampler must return a tensor like x, {tuple(x.shape)}; got {found}")
            return drawn.to(x) * s_noise

        return sampled
    if seeds is not None:
        drawn = step_noise(seeds, x)
        return lambda node: drawn(node) * s_noise
    if steps:
        what = repr(solver) if len(nodes) == 1 else "a run whose sigmas rise again"
        raise ValueError(f"{what} draws noise: give seeds=, one integer a sample, such as range({len(x)})")
    return lambda node: x  # never called


def _firsts(nodes: Sequence[Node], stages: Sequence[Stage]) -> list[int]:
    """The first call of each step: the last one at its level, where the step before may end with one, too."""
    if len(stages) == len(nodes) - 1:  # whatever level the model is told, as in a tuned plan
        return list(range(len(stages)))
    calls = {stage.node: k for k, stage in enumerate(stages)}
    firsts = [0]
    for node in nodes[1:-1]:
        k = calls.get(node, firsts[-1])
        risen = any(after.node.nsr > node.nsr for after in stages[k + 1 : k + 2])
        firsts.append(k + (risen and stages[k].noise > 0))  # a step that first adds noise
    return firsts


def _hearing(
    places: Sequence[int], firsts: Sequence[int], tell: Callable[[int, Node, Tensor, Tensor], None]
) -> Callable[[int, Node, Tensor, Tensor], None]:
    """From each call of a plan to `tell` for each place: at the first call of its step."""

    def hear(index: int, node: Node, x: Tensor, denoised: Tensor) -> None:
        for first, ends in zip(firsts, pairwise(places), strict=True):
            for i in range(*ends) if first == index else ():
                tell(i, node, x, denoised)

    return hear


def _last(steps: Generator[Step, None, Any]) -> tuple[Tensor, Any]:
    """The sample, and the solver's state there."""
    while True:
        try:
            x = next(steps).x
        except StopIteration as end:
            return x, end.value


def get_sigmas_focused(
    n: int,
    sigma_min: float,
    sigma_max: float,
    device: str | torch.device = "cpu",
    *,
    flow: bool = False,
    data_std: float | None = None,
) -> Tensor:
    """EVODiff's own levels for n calls, float32, (n + 1,), falling from sigma_max to sigma_min.

    Where the noise there would be seen, the last call goes on to 0, as it always does in k-diffusion's own levels.
    They are `fewstep.focused`, for sigmas that mean the same as in `sampler` and data of standard deviation `data_std`,
    which `EVODiff(data_std=...)` wants to know as well. None asks the range, which must be the model's: 0.5, or more
    where it ends at visible noise.
    """
    return get_sigmas(focused(data_std=data_std), n, sigma_min, sigma_max, device, flow=flow)


def get_sigmas(
    grid: Grid, n: int, sigma_min: float, sigma_max: float, device: str | torch.device = "cpu", *, flow: bool = False
) -> Tensor:
    """The levels of a grid of fewstep likewise."""
    low, high = (_ratio(_clamped(sigma)) for sigma in (sigma_min, sigma_max)) if flow else (sigma_min, sigma_max)
    ratios = (node.sigma for node in grid(EDM(low, high), n))
    return torch.tensor([r / (1 + r) if flow else r for r in ratios], dtype=torch.float32, device=device)


def get_sigmas_tuned(
    tuned: Tuned, n: int, schedule: Schedule, device: str | torch.device = "cpu", *, flow: bool = False
) -> Tensor:
    """The levels of a tuned plan of n calls, on the `schedule` that it was tuned on; float32, (n + 1,)."""
    ratios = [node.nsr for node in tuned.nodes(schedule, n)]
    return torch.tensor([r / (1 + r) if flow else r for r in ratios], dtype=torch.float32, device=device)


def _levels(sigmas: Tensor, flow: bool) -> list[float]:
    if not isinstance(sigmas, Tensor) or sigmas.ndim != 1 or not sigmas.is_floating_point():
        raise TypeError(f"sigmas must be a tensor of floating point of one dimension; got {sigmas!r}")
    values: list[float] = sigmas.tolist()
    for i, value in enumerate(values):
        if not math.isfinite(value):
            raise ValueError(
                f"sigmas must be finite; got {value} at index {i}: some schedules have none for this number of steps "
                "or this model's range, take another"
            )
        if value < 0:
            raise ValueError(f"sigmas must be noise levels of 0 or more; got {value:g} at index {i}")
    return list(map(_clamped, values)) if flow else values


def _clamped(sigma: float) -> float:
    return 1.0 if 1 < sigma <= 1 + ROUNDING else sigma


def _pieces(values: Sequence[float]) -> list[list[int]]:
    """The places of falling sigmas, split where they rise again; repeats are left out. A list that rises is one."""
    kept = [i for i, value in enumerate(values) if i == 0 or value != values[i - 1]]
    if len(kept) < 2 or values[kept[1]] > values[kept[0]]:
        return [kept]
    pieces = [[kept[0]]]
    for before, i in pairwise(kept):
        if values[i] < values[before]:
            pieces[-1].append(i)
        elif len(pieces[-1]) == 1:  # a second rise goes on from the first
            pieces[-1] = [i]
        else:
            pieces.append([i])
    return pieces


def _with_eta(solver: Solver, eta: float | None) -> Solver:
    if eta is None:
        return solver
    if isinstance(solver, (DDIM, SDEDPMSolverPP, AnalyticDPM, SEEDS, ERSDE, Stochastic)):
        return replace(solver, eta=eta)
    if isinstance(solver, SASolver):
        return replace(solver, tau=eta)  # its name for it
    return Stochastic(solver, eta) if eta else solver


def _ahead(nodes: Sequence[Node], schedule: Schedule) -> list[Node]:
    """Levels that a run which ends at visible noise may go on to: it is planned as the beginning of a longer one."""
    flow = isinstance(schedule, Flow)
    if not closes(schedule.data_std, nodes[-1], None):
        return []
    if nodes[-1].sigma < schedule.t_min * (1 + SAME):  # the model's lowest
        return [_node(0.0, flow)]
    ratios = [nodes[-1].nsr / 2**i for i in range(1, AHEAD + 1)]
    return [_node(ratio / (1 + ratio) if flow else ratio, flow) for ratio in ratios]


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
