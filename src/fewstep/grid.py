"""Step grids: which noise levels to visit, from noisy to clean, as tuples of nodes.

A grid is called as `grid(schedule, steps)` and returns `steps + 1` nodes, down to the schedule's clean end
t_min. `to_zero=True` spends the last step on sigma = 0, whose result is the last denoised prediction; False
stops at t_min; None, the default, closes only if the noise left at t_min would show. (On EDM's range it does
not, and a call is worth more spent on a step: up to half the RMSE at 5-12 calls, docs/numerics.md.) With options
only, a grid returns itself with those options:

    karras(EDM(), 8)                 # nodes
    karras(rho=5, to_zero=True)      # a grid to pass to sample(grid=...)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from itertools import pairwise
from typing import Any, Protocol, overload

from .schedule import Node, Schedule

__all__ = [
    "Grid",
    "GridFunction",
    "checked",
    "from_times",
    "karras",
    "log_snr",
    "time_quadratic",
    "time_uniform",
    "uniform",
]


# Noise of two grey levels in images of [-1, 1]: below it nobody sees whether a run ends at t_min or at 0.
VISIBLE = 1 / 64


class GridFunction(Protocol):
    """Anything that `sample` accepts as a grid: this module's grids, or a function of yours."""

    def __call__(self, schedule: Schedule, steps: int, /) -> Sequence[Node]: ...


class Grid:
    """A named grid with its options; see the module's docstring for the two ways to call it."""

    def __init__(self, make: Callable[..., tuple[Node, ...]], options: Mapping[str, Any] | None = None):
        self.make, self.options = make, dict(options or {})
        self.__name__, self.__doc__ = make.__name__, make.__doc__

    @overload
    def __call__(self, schedule: Schedule, steps: int, /, **options: Any) -> tuple[Node, ...]: ...
    @overload
    def __call__(self, /, **options: Any) -> Grid: ...
    def __call__(self, schedule: Schedule | None = None, steps: int | None = None, /, **options: Any) -> Any:
        if schedule is None:
            return Grid(self.make, {**self.options, **options})
        if steps is None or isinstance(steps, bool) or not hasattr(steps, "__index__") or steps < 1:
            raise ValueError(f"steps must be an integer of at least 1; got {steps!r}")
        return self.make(schedule, steps, **{**self.options, **options})

    def __repr__(self) -> str:
        options = ", ".join(f"{k}={v!r}" for k, v in self.options.items())
        return f"{self.__name__}({options})" if options else self.__name__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grid) and (self.make, self.options) == (other.make, other.options)

    def __hash__(self) -> int:
        return hash((self.make, *sorted(self.options.items())))

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self.make.__module__, self.__name__, self.options)


def _restore(module: str, name: str, options: Mapping[str, Any]) -> Grid:
    # By the Grid's name: pickle cannot find `make`, whose name the decorator gave to the Grid.
    grid: Grid = getattr(import_module(module), name)
    return Grid(grid.make, options)


def _descend(
    schedule: Schedule, steps: int, to_zero: bool | None, start: Node, end: Node, at: Callable[[float], float]
) -> tuple[Node, ...]:
    """`start`, then the times `at(u)` for u evenly down from 1, then `end`; closed at sigma = 0."""
    closing = end.sigma > 0 and (end.nsr > VISIBLE if to_zero is None else to_zero)
    n = steps - closing
    inner = [schedule.node(at(1 - i / n)) for i in range(1, n)]
    nodes = (start, *inner, *([end] if n else []))
    return (*nodes, schedule.node(schedule.t_clean)) if closing else nodes


@Grid
def log_snr(schedule: Schedule, steps: int, *, to_zero: bool | None = None) -> tuple[Node, ...]:
    """Uniform in half log-SNR. The grid of DPM-Solver, UniPC, DPM-Solver-v3 and EVODiff on pixel models."""
    noisy, clean = schedule.lam_range
    ends = _ends(schedule)
    return _descend(schedule, steps, to_zero, *ends, lambda u: schedule.time_at(clean + u * (noisy - clean)))


@Grid
def karras(schedule: Schedule, steps: int, *, rho: float = 7.0, to_zero: bool | None = None) -> tuple[Node, ...]:
    """Uniform in (sigma / alpha)^(1 / rho): Karras et al. (2022), eq. (5), rho = 7 there."""
    if not 0 < rho < math.inf:
        raise ValueError(f"rho must be positive; got rho={rho!r}")
    high, low = (math.exp(-lam / rho) for lam in schedule.lam_range)
    ends = _ends(schedule)
    return _descend(
        schedule, steps, to_zero, *ends, lambda u: schedule.time_at(-rho * math.log(low + u * (high - low)))
    )


@Grid
def time_uniform(schedule: Schedule, steps: int, *, to_zero: bool | None = None) -> tuple[Node, ...]:
    """Uniform in the schedule's clock (for `Flow`, before its shift). The usual grid of latent models."""
    start, end = schedule.node(schedule.t_max), schedule.node(schedule.t_min)
    return _descend(schedule, steps, to_zero, start, end, schedule.ramp)


@Grid
def time_quadratic(schedule: Schedule, steps: int, *, to_zero: bool | None = None) -> tuple[Node, ...]:
    """Uniform in the square root of the clock: finer steps near clean data. The grid of DEIS."""
    start, end = schedule.node(schedule.t_max), schedule.node(schedule.t_min)
    high, low = math.sqrt(schedule.t_max), math.sqrt(schedule.t_min)
    return _descend(schedule, steps, to_zero, start, end, lambda u: (low + u * (high - low)) ** 2)


@Grid
def uniform(schedule: Schedule, steps: int, *, to_zero: bool | None = None) -> tuple[Node, ...]:
    """Uniform in the variable that the schedule names: `log_snr`, or `time_uniform` for latent and flow models."""
    grid = log_snr if schedule.uniform == "lam" else time_uniform
    return grid(schedule, steps, to_zero=to_zero)


def _ends(schedule: Schedule) -> tuple[Node, Node]:
    """The nodes at the ends of lam_range, which are t_max and t_min wherever log-SNR is finite there."""
    nodes = []
    for time, lam in zip((schedule.t_max, schedule.t_min), schedule.lam_range, strict=True):
        node = schedule.node(time)
        nodes.append(node if math.isfinite(node.lam) else schedule.node(schedule.time_at(lam)))
    return nodes[0], nodes[1]


def from_times(schedule: Schedule, times: Iterable[float]) -> tuple[Node, ...]:
    """The nodes at explicit times of the schedule's clock (a list, an array or a tensor), in their order.

    Nodes among them are taken as they are.
    """
    values = times.tolist() if hasattr(times, "tolist") else times
    return checked([t if isinstance(t, Node) else schedule.node(t) for t in values], "times")


def checked(nodes: Iterable[Node], name: str = "nodes") -> tuple[Node, ...]:
    """The nodes as a tuple, if they are a grid: at least two, finite, strictly monotone in noise level.

    Noise may fall (sampling) or rise (inversion); only the last node may be clean. ValueError otherwise.
    """
    grid = tuple(nodes)
    if len(grid) < 2:
        raise ValueError(f"{name} must hold at least 2 points; got {len(grid)}")
    for i, node in enumerate(grid):
        if not isinstance(node, Node):
            raise TypeError(f"{name} must hold nodes; got {node!r} at index {i}: make them with from_times")
        if not all(math.isfinite(v) for v in node) or node.alpha < 0 or node.sigma < 0:
            raise ValueError(f"{name} must be finite with alpha, sigma >= 0; got {node} at index {i}")
    if grid[0].sigma == 0:
        raise ValueError(f"{name} must not start at sigma = 0, where the ODE is singular: start at sigma_min")
    falling = grid[1].lam > grid[0].lam
    for i, (s, t) in enumerate(pairwise(grid), start=1):
        if not (t.lam > s.lam if falling else t.lam < s.lam):
            raise ValueError(
                f"{name} must be strictly sorted by noise level, noisy to clean; "
                f"got time {t.time!r} after {s.time!r} at index {i}: sort them and drop repeats"
            )
    return grid
