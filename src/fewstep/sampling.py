"""The push API: drive a solver over a grid, calling the denoiser once per stage."""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, is_dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from .answers import DenoiserError, check_answer, how_to_convert
from .arguments import count
from .grid import GridFunction, checked, from_times
from .prediction import Denoiser, schedule_of
from .schedule import Node, Schedule, mismatch
from .solvers import EVODiff, Solver, Stage
from .solvers.core.base import renoise
from .solvers.core.planned import planned

__all__ = ["DenoiserError", "Step", "integrate", "plan", "sample", "trajectory", "unit_noise"]

DEFAULT_NFE = 10
MOST_NFE = 10_000  # the longest published runs have 4,000 steps
STEP_NOISE = 1  # the stream of a seed that steps draw from; `unit_noise` uses the seed itself
SEEDS = range(-(2**63), 2**64)  # of a torch.Generator
# A node further from the schedule's own, in half log-SNR, is of another schedule. Between the entries of a table peers
# differ by up to 0.35 (diffusers and the DPM-Solver code on Stable Diffusion's); VP nodes on EDM are off by 5.
FAR = 0.5
# Unit Gaussian noise has a root mean square within these, but for once in 5 million samples of so many elements.
UNIT, MANY = (0.7, 1.4), 128


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
    noise: Tensor | None = None,
    *,
    x: Tensor | None = None,
    nfe: int | None = None,
    solver: Solver | None = None,
    schedule: Schedule | None = None,
    grid: GridFunction | Iterable[float] | None = None,
    seeds: Iterable[int] | None = None,
    differentiable: bool = False,
    progress: bool = False,
    callback: Callable[[Step], object] | None = None,
) -> Tensor:
    """Draw samples from unit Gaussian `noise` with exactly `nfe` calls of `denoiser`.

    Args:
        denoiser: `denoiser(x, t)` returns the expected clean x, of x's shape, for the noisy x at the
            float time t of the schedule's clock; x has the shape, dtype and device of `noise`.
        noise: (B, *), any rank from 2, float16, bfloat16, float32 or float64.
        x: in place of `noise`, the state at the grid's first node, for a start that is not N(0, sigma^2).
        nfe: how many calls; 10 if not given. With explicit times it follows from them.
        solver: EVODiff() if not given.
        schedule: the noise schedule that the model was trained with; the denoiser's own if not given. It may have
            another range than that, but no other levels.
        grid: `grid(schedule, steps)`, or explicit times from noisy to clean; the solver's recommended
            grid if not given. One that ends at sigma = 0 returns the last denoised prediction, one that
            ends above it stops there.
        seeds: one integer a sample, for solvers that draw noise on the way. Sample i draws from a generator of
            its own, on the CPU, so that it does not depend on its batch or its device, and at each noise level apart,
            so that a run in two parts draws what the whole one does. The streams are not those of `unit_noise`: the
            same seeds can serve both.
        differentiable: pass gradients, in reverse and forward mode, through all calls. Memory then grows with nfe
            (torch.utils.checkpoint around the model spares most of it). Without it no graph is made, whatever the
            model's parameters ask for, and noise that asks for gradients is refused.
        progress: show a bar on stderr (needs rich, in the extra `cli`).
        callback: called with each `Step`.

    Returns:
        (B, *), of the dtype and on the device of `noise`. State and reductions are float32 or better. A
        sample does not depend on its batch mates: bit for bit, on CPU, if the denoiser's answer does not.

    Raises:
        ValueError, TypeError: wrong arguments, before the first call.
        DenoiserError: the denoiser returned a wrong shape or device (at once) or NaN or inf (after the
            last call: looking earlier would stall an accelerator), naming the call and its noise level.

    Warns:
        UserWarning: noise of 128 elements or more whose root mean square is not within 0.7 and 1.4.
    """
    solver = EVODiff() if solver is None else solver
    schedule = check_parts(denoiser, solver, schedule)
    name, start = ("noise", noise) if x is None else ("x", x)
    if start is None or (noise is not None and x is not None):
        raise TypeError("give either noise, unit Gaussian, or x, the state at the grid's first node")
    check_tensor(name, start, differentiable)
    nodes, stages = plan(schedule, solver, nfe=nfe, grid=grid)
    state = start.to(_working(start.dtype))
    if x is None:
        _check_unit(start)
        state = state * nodes[0].sigma
    draw = _step_noise(solver, nodes[0], stages, state, seeds)
    steps = drive(denoiser, state, nodes[0], stages, start.dtype, draw, differentiable)
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
    differentiable: bool = False,
    progress: bool = False,
    callback: Callable[[Step], object] | None = None,
) -> Tensor:
    """Carry `x`, the state at `nodes[0]`, to `nodes[-1]`: image to image, inversion, tests.

    `nodes` come from a grid or from `from_times`, of this `schedule`, with noise falling (sampling) or rising
    (inversion); ValueError where half log-SNR is further than 0.5 from the schedule's. `nfe` is by default what the
    solver needs for them. The rest is as in `sample`.
    """
    steps, calls = _steps_of(denoiser, x, nodes, solver, schedule, nfe, seeds, differentiable)
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
    differentiable: bool = False,
) -> Iterator[Step]:
    """`integrate`, one `Step` per call of the denoiser; stop early by leaving the loop."""
    return _steps_of(denoiser, x, nodes, solver, schedule, nfe, seeds, differentiable)[0]


def _steps_of(
    denoiser: Denoiser,
    x: Tensor,
    nodes: Iterable[Node],
    solver: Solver | None,
    schedule: Schedule | None,
    nfe: int | None,
    seeds: Iterable[int] | None,
    differentiable: bool,
) -> tuple[Iterator[Step], int]:
    """The run over given nodes and its number of calls, with everything checked before the first."""
    solver = EVODiff() if solver is None else solver
    schedule = check_parts(denoiser, solver, schedule)
    check_tensor("x", x, differentiable)
    grid = _of(schedule, checked(nodes), "nodes")
    if grid[1].lam < grid[0].lam and _follows_steps(denoiser):
        raise ValueError(f"CFG++ follows steps of falling noise; got nodes from time {grid[0].time!r} upwards")
    stages = planned(solver, schedule, grid, None if nfe is None else _budget(nfe))
    state = x.to(_working(x.dtype))
    draw = _step_noise(solver, grid[0], stages, state, seeds)
    return drive(denoiser, state, grid[0], stages, x.dtype, draw, differentiable), len(stages)


def unit_noise(
    seeds: Iterable[int],
    shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Unit Gaussian noise (B, *shape), image i from a generator of its own seeded with seeds[i].

    Drawn on the CPU in float32, so that a seed means the same image in any batch and on any device. torch's generator
    there looks at the low 32 bits of a seed alone, and would draw one image for 5 and 5 + 2^32: of a seed that does not
    fit in 32 bits, a hash of all of it is taken.
    """
    if not dtype.is_floating_point:
        raise TypeError(f"dtype must be floating point; got {dtype}")
    fitting = (seed if 0 <= seed < 2**32 else hashed_seed(seed % 2**64) for seed in integers(seeds))
    generators = [torch.Generator().manual_seed(seed) for seed in fitting]
    if not generators:
        raise ValueError("seeds must hold at least one; got none")
    try:
        sizes = tuple(operator.index(size) for size in shape)
    except TypeError as error:
        raise TypeError(f"shape must be the integers of one sample, such as (3, 32, 32); got {shape!r}") from error
    if not sizes or min(sizes) < 1:
        raise ValueError(f"shape must be that of one sample, such as (3, 32, 32), and not empty; got {shape!r}")
    return _drawn(generators, sizes).to(device=device, dtype=dtype)


def hashed_seed(*entropy: int) -> int:
    """A seed for torch's generator, which looks at 32 bits alone: they depend on all bits of these."""
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def integers(seeds: Iterable[int]) -> list[int]:
    """Of Python, numpy or torch."""
    try:
        numbers = [operator.index(seed) for seed in seeds]
    except TypeError as error:
        raise TypeError(f"seeds must be integers, one a sample; got {seeds!r}") from error
    for number in numbers:
        if number not in SEEDS:
            raise ValueError(f"seeds must lie in [-2^63, 2^64), as torch's; got {number}")
    return numbers


def _drawn(generators: Iterable[torch.Generator], shape: Sequence[int]) -> Tensor:
    # The type and device are named: torch's defaults are anybody's to set.
    return torch.stack(
        [torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu") for generator in generators]
    )


def _step_noise(
    solver: Solver, start: Node, stages: Sequence[Stage], x: Tensor, seeds: Iterable[int] | None
) -> Callable[[Node], Tensor]:
    """What draws unit noise like `x` at a node of a stochastic plan."""
    if seeds is None:
        if stages[0].node != start or any(stage.noise for stage in stages):
            raise ValueError(f"{solver!r} draws noise: give seeds=, one integer a sample, such as range({len(x)})")
        return lambda node: x  # never called
    return step_noise(seeds, x)


def step_noise(seeds: Iterable[int], x: Tensor) -> Callable[[Node], Tensor]:
    """What draws unit noise like `x` at a node, sample i by seeds[i], in other streams than those of `unit_noise`.

    It belongs to the node's log-SNR, so that a run in two parts, or one that is entered late, draws what the whole run
    draws there; drawn once more at the same node, it is other noise.
    """
    numbers = integers(seeds)
    if len(numbers) != len(x):
        raise ValueError(f"seeds must be one a sample; got {len(numbers)} for {len(x)} samples")
    drawn: dict[int, int] = {}

    def draw(node: Node) -> Tensor:
        (level,) = np.array([node.lam]).view(np.uint64).tolist()
        drawn[level] = drawn.get(level, -1) + 1
        words = (hashed_seed(seed % 2**64, STEP_NOISE, level, drawn[level]) for seed in numbers)
        return _drawn((torch.Generator().manual_seed(word) for word in words), x.shape[1:]).to(x)

    return draw


def plan(
    schedule: Schedule,
    solver: Solver,
    *,
    nfe: int | None = None,
    grid: GridFunction | Iterable[float] | None = None,
) -> tuple[tuple[Node, ...], Sequence[Stage]]:
    """The nodes and the stages of a run: as many stages as `nfe`, or as explicit times imply."""
    nfe = None if nfe is None else _budget(nfe)
    if isinstance(grid, str | Real):
        raise TypeError(f"grid must be a grid such as karras(rho=7), or explicit times; got {grid!r}")
    if grid is not None and not callable(grid):
        nodes = _of(schedule, _falling(from_times(schedule, grid)), "grid")
        return nodes, planned(solver, schedule, nodes, nfe)
    make = solver.grid if grid is None else grid
    nfe = DEFAULT_NFE if nfe is None else nfe
    # The fewest steps that use up the budget. What a step costs depends on how the grid ends, but more steps never cost
    # fewer calls, and each costs one: doubled strides pass the number, halved ones find it.
    steps, stride = max(1, nfe // solver.calls_per_step), 1
    below, (nodes, stages) = steps - 1, _steps(schedule, solver, make, steps)
    while len(stages) < nfe:
        if steps == nfe:
            raise ValueError(f"{solver!r} makes {len(stages)} stages of {steps} steps: fewer than one a step")
        below, steps, stride = steps, min(steps + stride, nfe), 2 * stride
        nodes, stages = _steps(schedule, solver, make, steps)
    while steps - below > 1:
        middle = (below + steps) // 2
        found = _steps(schedule, solver, make, middle)
        if len(found[1]) < nfe:
            below = middle
        else:
            steps, (nodes, stages) = middle, found
    return nodes, stages if len(stages) == nfe else planned(solver, schedule, nodes, nfe)


def _budget(nfe: int) -> int:
    number = count(nfe)
    if number < 1:
        raise ValueError(f"nfe must be an integer of at least 1; got {nfe!r}")
    if number > MOST_NFE:
        raise ValueError(f"nfe must be at most {MOST_NFE:,}; got {nfe!r}: a few hundred calls converge")
    return number


def _steps(
    schedule: Schedule, solver: Solver, make: GridFunction, steps: int
) -> tuple[tuple[Node, ...], Sequence[Stage]]:
    nodes = _of(schedule, _falling(checked(make(schedule, steps), "grid")), "grid")
    if len(nodes) != steps + 1:
        raise ValueError(f"grid must return steps + 1 = {steps + 1} nodes; got {len(nodes)}")
    return nodes, planned(solver, schedule, nodes)


def _of(schedule: Schedule, nodes: tuple[Node, ...], name: str) -> tuple[Node, ...]:
    """The nodes, if they are the schedule's: the model, and solvers for levels between nodes, go by its clock."""
    if len(nodes) > MOST_NFE + 1:
        raise ValueError(f"{name} must hold at most {MOST_NFE + 1:,} nodes; got {len(nodes):,}")
    for i, node in enumerate(nodes):
        off = mismatch(schedule, node)
        if off > FAR:
            found = "is no time of its clock" if math.isinf(off) else f"is off by {off:.2g} in half log-SNR"
            raise ValueError(
                f"{name} must hold nodes of {schedule!r}; {node} at index {i} {found}: "
                "give schedule=, the one that they were made with and the model was trained with"
            )
    return nodes


def _falling(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
    if nodes[1].lam < nodes[0].lam:
        raise ValueError("grid must go from noisy to clean; to go the other way, use integrate")
    return nodes


def drive(
    denoiser: Denoiser,
    x: Tensor,
    start: Node,
    stages: Sequence[Stage],
    dtype: torch.dtype,
    draw: Callable[[Node], Tensor],
    differentiable: bool,
    state: Any = None,
    hear: Callable[[int, Node, Tensor, Tensor], object] | None = None,
) -> Generator[Step, None, Any]:
    """The loop of one batch: `solve`, with the denoiser called at once; the solver's state at the end is returned."""
    calling = nullcontext if differentiable else torch.no_grad
    run = solve(x, start, stages, dtype, draw, differentiable, state, hear)
    given, state = next(run)
    for index, stage in enumerate(stages):
        with calling():
            denoised = denoiser(given, stage.node.time)
        given, state = run.send(denoised)
        yield Step(index, stage.node, denoised, given)
    return state


def solve(
    x: Tensor,
    start: Node,
    stages: Sequence[Stage],
    dtype: torch.dtype,
    draw: Callable[[Node], Tensor],
    differentiable: bool,
    state: Any = None,
    hear: Callable[[int, Node, Tensor, Tensor], object] | None = None,
) -> Generator[tuple[Tensor, Any], Tensor, None]:
    """A run that waits: it yields the noisy x of each call, is sent what that denoises to, and yields the sample last.

    With each goes the solver's state. `x` is the state at `start` in working precision; what is yielded is of `dtype`.
    `state` is the solver's, where the stages go on from others. `hear` is told of every call before its answer is used,
    hear(index, node, x, denoised), and may edit both in place.

    No tensor becomes a Python number before the last call, so an accelerator never waits: each answer
    leaves a sum on the device, and the sums are looked at together at the end. Inference mode spares the many
    small operations of a stage autograd's dispatch, a sixth of their time; it ends before x is handed out. State and
    history are copies: a model may work in place on its input, or answer in the same buffer every time.
    """
    stepping = nullcontext if differentiable else torch.inference_mode
    if stages[0].node != start:
        scale, added = renoise(start, stages[0].node)
        x = x * scale + draw(start) * added
    given = x.to(dtype, copy=True)
    sums: list[Tensor] = []
    for index, stage in enumerate(stages):
        denoised = yield given, state
        check_answer(denoised, given, "the denoiser", stage.node.time, sigma=stage.node.sigma, index=index)
        if hear is not None:
            shown = x.to(dtype, copy=True)
            hear(index, stage.node, shown, denoised)
            x = x + (shown - x.to(dtype))
        with stepping():
            answer = denoised.to(x.dtype, copy=True)
            sums.append(answer.sum())
            x, state = stage(state, x, answer)
            if stage.noise:
                x = x + draw(stage.node) * stage.noise
        given = x.to(dtype, copy=True)
        if index == len(stages) - 1:
            _check_finite([*sums, given.sum()], stages)
    yield given, state


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


def check_parts(denoiser: object, solver: object, schedule: Schedule | None) -> Schedule:
    """The schedule of the run."""
    found = schedule_of(denoiser, schedule)
    if isinstance(solver, type) or not hasattr(solver, "plan"):
        raise TypeError(f"solver must be a solver such as EVODiff(); got {solver!r}")
    if getattr(solver, "calls_per_step", 1) > 1 and _follows_steps(denoiser):
        raise ValueError(
            f"CFG++ follows the steps, one call each; {solver!r} makes more: take a solver of one call a step, such as "
            "DDIM() or DPMSolverPP(2), or guide with guided"
        )
    return found


def _follows_steps(denoiser: object) -> bool:
    """Whether it, or one that it wraps, answers for the step that begins at its call."""
    parts = vars(denoiser).values() if is_dataclass(denoiser) and not isinstance(denoiser, type) else ()
    return getattr(denoiser, "follows_steps", False) is True or any(map(_follows_steps, parts))


def check_tensor(name: str, x: Tensor, differentiable: bool | None) -> None:
    """TypeError or ValueError for what no run can start from. `differentiable` is None where no run can be."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor; got {type(x).__name__}{how_to_convert(x)}")
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating point; got {x.dtype}{how_to_convert(x)}")
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(f"{name} must be (B, *) of rank 2 or more and not empty; got shape {tuple(x.shape)}")
    if not bool(x.isfinite().all()):
        raise ValueError(f"{name} must be finite; it holds NaN or inf")
    if not differentiable and _is_differentiated(x):
        raise ValueError(
            f"a derivative is taken of {name} or around this run, which would drop it: give "
            f"{'' if differentiable is None else 'differentiable=True, or '}{name}.detach() under torch.no_grad()"
        )


def _is_differentiated(x: Tensor) -> bool:
    """Whether a derivative is taken here: by `x`, or, under torch.func, by anything, such as the model's weights."""
    transform = torch._C._functorch.peek_interpreter_stack()
    kind = None if transform is None else transform.key()
    reverse = x.requires_grad or kind == torch._C._functorch.TransformType.Grad
    forward = forward_ad.unpack_dual(x).tangent is not None or kind == torch._C._functorch.TransformType.Jvp
    return forward or (reverse and torch.is_grad_enabled())


def _check_unit(noise: Tensor) -> None:
    if noise.numel() < MANY:
        return
    size = float(torch.linalg.vector_norm(noise.detach(), dtype=_working(noise.dtype))) / math.sqrt(noise.numel())
    if not UNIT[0] <= size <= UNIT[1]:
        warnings.warn(
            f"noise must be unit Gaussian, and is scaled by the run; got a root mean square of {size:.3g}: "
            "leave out the factor, or give a state of your own as x=",
            stacklevel=3,
        )


def _check_finite(sums: Sequence[Tensor], stages: Sequence[Stage]) -> None:
    finite = torch.stack(list(sums)).isfinite().tolist()
    if not all(finite):
        index = finite.index(False)
        if index == len(stages):
            raise DenoiserError("the run's last state is NaN or inf, though each answer was finite: it diverged")
        node = stages[index].node
        raise DenoiserError(
            f"the denoiser returned NaN or inf at call {index} (time {node.time:g}, sigma {node.sigma:g}); "
            "check the model there (half precision overflows first at high noise), its schedule"
            + (", and by callback= whether the run had diverged before" if index else "")
        )
