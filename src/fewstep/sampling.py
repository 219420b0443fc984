"""The push API: drive a solver over a grid, calling the denoiser once per stage."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .grid import GridFunction, checked, from_times
from .prediction import Denoiser
from .schedule import EDM, Node, Schedule
from .solvers import EVODiff, Solver, Stage
from .solvers.core.base import renoise

__all__ = ["DenoiserError", "Step", "integrate", "plan", "sample", "trajectory", "unit_noise"]

DEFAULT_NFE = 10
STEP_NOISE = 1  # the stream of a seed that steps draw from; `unit_noise` uses the seed itself


class DenoiserError(ValueError):
    """The denoiser returned something that is not an image: wrong type, shape, device, or NaN."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one call of the denoiser led to.

    `x` is the state after it, where the next call will be made; the last step's x is the sample.
    `denoised` is what the denoiser returned at `node`; `index` counts calls from 0. The tensors are the model's
    own input and output: clone what you keep if the model reuses them. To change the state between calls, drive the
    stages of `solver.plan` yourself.
    """

    index: int
    node: Node
    denoised: Tensor
    x: Tensor


def sample(
    denoiser: Denoiser,
    noise: Tensor,
    *,
    nfe: int | None = None,
    solver: Solver | None = None,
    schedule: Schedule | None = None,
    grid: GridFunction | Iterable[float] | None = None,
    seeds: Iterable[int] | None = None,
    progress: bool = False,
    callback: Callable[[Step], object] | None = None,
) -> Tensor:
    """Draw images from unit Gaussian `noise` with exactly `nfe` calls of `denoiser`.

    Args:
        denoiser: `denoiser(x, t)` returns the expected clean image, of x's shape, for the noisy x at the
            float time t of the schedule's clock; x has the shape, dtype and device of `noise`.
        noise: (B, *), any rank from 2, float16, bfloat16, float32 or float64.
        nfe: how many calls; 10 if not given. With explicit times it follows from them.
        solver: EVODiff() if not given.
        schedule: the noise schedule that the model was trained with; EDM() if not given.
        grid: `grid(schedule, steps)`, or explicit times from noisy to clean; the solver's recommended
            grid if not given. One that ends at sigma = 0 returns the last denoised prediction, one that
            ends above it stops there.
        seeds: one integer a sample, for solvers that draw noise on the way. Sample i draws from a generator of
            its own, on the CPU, so that it does not depend on its batch or its device. The streams are not those
            of `unit_noise`: the same seeds can serve both.
        progress: show a bar on stderr (needs rich, in the extra `cli`).
        callback: called with each `Step`.

    Returns:
        (B, *), of the dtype and on the device of `noise`. State and reductions are float32 or better. A
        sample does not depend on its batch mates: bit for bit, on CPU, if the denoiser's answer does not.

    Raises:
        ValueError, TypeError: wrong arguments, before the first call.
        DenoiserError: the denoiser returned a wrong shape or device (at once) or NaN or inf (after the
            last call: looking earlier would stall an accelerator), naming the call and its noise level.
    """
    schedule = EDM() if schedule is None else schedule
    solver = EVODiff() if solver is None else solver
    _check_parts(denoiser, solver, schedule)
    _check_tensor("noise", noise)
    nodes, stages = plan(schedule, solver, nfe=nfe, grid=grid)
    state = noise.to(_working(noise.dtype)) * nodes[0].sigma
    steps = _run(denoiser, state, nodes[0], stages, noise.dtype, _step_noise(solver, nodes[0], stages, state, seeds))
    return _last(_with_progress(steps, len(stages), progress), callback)


def integrate(
    denoiser: Denoiser,
    x: Tensor,
    nodes: Sequence[Node],
    *,
    solver: Solver | None = None,
    schedule: Schedule | None = None,
    nfe: int | None = None,
    seeds: Iterable[int] | None = None,
    progress: bool = False,
    callback: Callable[[Step], object] | None = None,
) -> Tensor:
    """Carry `x`, the state at `nodes[0]`, to `nodes[-1]`: image to image, inversion, tests.

    `nodes` come from a grid or from `from_times`, of this `schedule`, with noise falling (sampling) or rising
    (inversion). `nfe` is by default what the solver needs for them. The rest is as in `sample`.
    """
    steps, calls = _steps_of(denoiser, x, nodes, solver, schedule, nfe, seeds)
    return _last(_with_progress(steps, calls, progress), callback)


def trajectory(
    denoiser: Denoiser,
    x: Tensor,
    nodes: Sequence[Node],
    *,
    solver: Solver | None = None,
    schedule: Schedule | None = None,
    nfe: int | None = None,
    seeds: Iterable[int] | None = None,
) -> Iterator[Step]:
    """`integrate`, one `Step` per call of the denoiser; stop early by leaving the loop."""
    return _steps_of(denoiser, x, nodes, solver, schedule, nfe, seeds)[0]


def _steps_of(
    denoiser: Denoiser,
    x: Tensor,
    nodes: Iterable[Node],
    solver: Solver | None,
    schedule: Schedule | None,
    nfe: int | None,
    seeds: Iterable[int] | None,
) -> tuple[Iterator[Step], int]:
    """The run over given nodes and its number of calls, with everything checked before the first."""
    schedule = EDM() if schedule is None else schedule
    solver = EVODiff() if solver is None else solver
    _check_parts(denoiser, solver, schedule)
    _check_tensor("x", x)
    grid = checked(nodes)
    stages = solver.plan(schedule, grid, nfe)
    state = x.to(_working(x.dtype))
    draw = _step_noise(solver, grid[0], stages, state, seeds)
    return _run(denoiser, state, grid[0], stages, x.dtype, draw), len(stages)


def unit_noise(
    seeds: Iterable[int],
    shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Unit Gaussian noise (B, *shape), image i from a generator of its own seeded with seeds[i].

    Drawn on the CPU in float32, so that a seed means the same image in any batch and on any device.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in _integers(seeds)]
    if not generators:
        raise ValueError("seeds must hold at least one; got none")
    return _drawn(generators, shape).to(device=device, dtype=dtype)


def _integers(seeds: Iterable[int]) -> list[int]:
    """Of Python, numpy or torch."""
    try:
        return [operator.index(seed) for seed in seeds]
    except TypeError as error:
        raise TypeError(f"seeds must be integers, one a sample; got {seeds!r}") from error


def _drawn(generators: Iterable[torch.Generator], shape: Sequence[int]) -> Tensor:
    return torch.stack([torch.randn(*shape, generator=generator) for generator in generators])


def _step_noise(
    solver: Solver, start: Node, stages: Sequence[Stage], x: Tensor, seeds: Iterable[int] | None
) -> Callable[[], Tensor]:
    """What draws unit noise like `x` for the steps of a stochastic plan."""
    numbers = None if seeds is None else _integers(seeds)
    if numbers is None:
        if stages[0].node != start or any(stage.noise for stage in stages):
            raise ValueError(f"{solver!r} draws noise: give seeds=, one integer a sample, such as range({len(x)})")
        numbers = []  # never drawn from
    elif len(numbers) != len(x):
        raise ValueError(f"seeds must be one a sample; got {len(numbers)} for {len(x)} samples")
    streams = [np.random.SeedSequence([seed % 2**64, STEP_NOISE]).generate_state(1, np.uint64) for seed in numbers]
    generators = [torch.Generator().manual_seed(int(stream[0])) for stream in streams]
    return lambda: _drawn(generators, x.shape[1:]).to(x)


def plan(
    schedule: Schedule,
    solver: Solver,
    *,
    nfe: int | None = None,
    grid: GridFunction | Iterable[float] | None = None,
) -> tuple[tuple[Node, ...], Sequence[Stage]]:
    """The nodes and the stages of a run: as many stages as `nfe`, or as explicit times imply."""
    if nfe is not None and (isinstance(nfe, bool) or not hasattr(nfe, "__index__") or nfe < 1):
        raise ValueError(f"nfe must be an integer of at least 1; got {nfe!r}")
    if isinstance(grid, (str, int, float)):
        raise TypeError(f"grid must be a grid such as karras(rho=7), or explicit times; got {grid!r}")
    if grid is not None and not callable(grid):
        nodes = _falling(from_times(schedule, grid))
        return nodes, solver.plan(schedule, nodes, nfe)
    make = solver.grid if grid is None else grid
    nfe = DEFAULT_NFE if nfe is None else nfe
    # What a step costs depends on how the grid ends, but more steps never cost fewer calls.
    steps = max(1, nfe // solver.calls_per_step)
    while len((found := _steps(schedule, solver, make, steps))[1]) < nfe:
        steps += 1
        if steps > nfe:  # every step costs a call
            raise ValueError(f"{solver!r} makes {len(found[1])} stages of {steps - 1} steps: fewer than one a step")
    while len(found[1]) > nfe and steps > 1 and len((fewer := _steps(schedule, solver, make, steps - 1))[1]) >= nfe:
        steps, found = steps - 1, fewer
    nodes, stages = found
    return nodes, stages if len(stages) == nfe else solver.plan(schedule, nodes, nfe)


def _steps(
    schedule: Schedule, solver: Solver, make: GridFunction, steps: int
) -> tuple[tuple[Node, ...], Sequence[Stage]]:
    nodes = _falling(checked(make(schedule, steps), "grid"))
    if len(nodes) != steps + 1:
        raise ValueError(f"grid must return steps + 1 = {steps + 1} nodes; got {len(nodes)}")
    return nodes, solver.plan(schedule, nodes)


def _falling(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
    if nodes[1].lam < nodes[0].lam:
        raise ValueError("grid must go from noisy to clean; to go the other way, use integrate")
    return nodes


def _run(
    denoiser: Denoiser, x: Tensor, start: Node, stages: Sequence[Stage], dtype: torch.dtype, draw: Callable[[], Tensor]
) -> Iterator[Step]:
    """The loop. `x` is the state at `start` in working precision; the denoiser and the caller see `dtype`.

    No tensor becomes a Python number before the last call, so an accelerator never waits: each answer
    leaves a sum on the device, and the sums are looked at together at the end. Inference mode spares the many
    small operations of a stage autograd's dispatch, a sixth of their time; it ends before x is handed out. State and
    history are copies: a model may work in place on its input, or answer in the same buffer every time.
    """
    state: Any = None
    if stages[0].node != start:
        scale, added = renoise(start, stages[0].node)
        x = x * scale + draw() * added
    given = x.to(dtype, copy=True)
    sums: list[Tensor] = []
    for index, stage in enumerate(stages):
        with torch.no_grad():
            denoised = denoiser(given, stage.node.time)
        _check_answer(denoised, given, index, stage.node)
        with torch.inference_mode():
            answer = denoised.to(x.dtype, copy=True)
            sums.append(answer.sum())
            x, state = stage(state, x, answer)
            if stage.noise:
                x = x + draw() * stage.noise
        given = x.to(dtype, copy=True)
        if index == len(stages) - 1:
            _check_finite(sums, stages)
        yield Step(index, stage.node, denoised, given)


def _last(steps: Iterator[Step], callback: Callable[[Step], object] | None) -> Tensor:
    for step in steps:
        if callback is not None:
            callback(step)
    return step.x


def _with_progress(steps: Iterator[Step], total: int, progress: bool) -> Iterator[Step]:
    if not progress:
        return steps
    try:
        from rich.console import Console
        from rich.progress import track
    except ImportError as error:
        raise ImportError("progress=True needs rich: pip install 'fewstep[cli]'") from error
    return iter(track(steps, "sampling", total=total, console=Console(stderr=True)))


def _working(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _check_parts(denoiser: object, solver: object, schedule: object) -> None:
    if not callable(denoiser):
        raise TypeError(f"denoiser must be a function denoiser(x, t); got {type(denoiser).__name__}")
    if isinstance(solver, type) or not hasattr(solver, "plan"):
        raise TypeError(f"solver must be a solver such as EVODiff(); got {solver!r}")
    if isinstance(schedule, type) or not hasattr(schedule, "node"):
        raise TypeError(f"schedule must be a schedule such as EDM(); got {schedule!r}")


def _check_tensor(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor; got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating point; got {x.dtype}")
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(f"{name} must be (B, *) of rank 2 or more and not empty; got shape {tuple(x.shape)}")
    if not bool(x.isfinite().all()):
        raise ValueError(f"{name} must be finite; it holds NaN or inf")


def _check_answer(denoised: object, x: Tensor, index: int, node: Node) -> None:
    where = f"at call {index} (time {node.time:g}, sigma {node.sigma:g})"
    if not isinstance(denoised, Tensor):
        kind = type(denoised).__name__
        raise DenoiserError(f"the denoiser returned {kind} {where}; it must return a tensor (a model's .sample?)")
    if denoised.shape != x.shape:
        shapes = f"{tuple(denoised.shape)} for x of shape {tuple(x.shape)}"
        raise DenoiserError(f"the denoiser returned shape {shapes} {where}; it must return the shape it was given")
    if denoised.device != x.device:
        raise DenoiserError(f"the denoiser returned a tensor on {denoised.device} for x on {x.device} {where}")
    if not denoised.is_floating_point():
        raise DenoiserError(f"the denoiser returned {denoised.dtype} {where}; it must return floating point")


def _check_finite(sums: Sequence[Tensor], stages: Sequence[Stage]) -> None:
    finite = torch.stack(list(sums)).isfinite().tolist()
    if not all(finite):
        index = finite.index(False)
        node = stages[index].node
        raise DenoiserError(
            f"the denoiser returned NaN or inf at call {index} (time {node.time:g}, sigma {node.sigma:g}); "
            "check the model there (half precision overflows first at high noise), and its schedule"
        )
