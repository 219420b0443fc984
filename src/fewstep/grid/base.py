"""Step grids: which noise levels to visit, from noisy to clean, as tuples of nodes.

A grid is called as `grid(schedule, steps)` and returns `steps + 1` nodes, down to the schedule's clean end
t_min. `to_zero=True` spends the last step on sigma = 0, whose result is the last denoised prediction; False
stops at t_min; None, the default, closes only if the noise left at t_min would show. (On EDM's range it does
not, and a call is worth more spent on a step: up to a third of the RMSE at 5-12 calls, docs/numerics.md.) With options
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

import numpy as np

from ..arguments import count
from ..schedule import DATA_STD, VISIBLE, Node, Schedule

__all__ = [
    "Grid",
    "GridFunction",
    "checked",
    "focused",
    "from_times",
    "karras",
    "kl_optimal",
    "log_snr",
    "scire_nsr",
    "time_quadratic",
    "time_uniform",
    "uniform",
]


DENSITY_POINTS = 4001  # of a grid that is given by its density
CENTER, RISE, FALL, FALL_OF_LONG = 4.0, 0.6, 0.22, 0.09  # of `focused`
WIDE = 2.9  # log of nsr over the center; EDM's range begins a little above it, for images in [-1, 1]


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
        whole = count(steps)
        if whole < 1:
            raise ValueError(f"steps must be an integer of at least 1; got {steps!r}")
        return self.make(schedule, whole, **{**self.options, **options})

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


def closes(data_std: float | None, end: Node, to_zero: bool | None) -> bool:
    """Whether a grid down to `end` takes one more step, to sigma = 0."""
    return end.sigma > 0 and (end.nsr > VISIBLE * (data_std or DATA_STD) / DATA_STD if to_zero is None else to_zero)


def between(
    schedule: Schedule,
    steps: int,
    to_zero: bool | None,
    ends: tuple[Node, Node],
    inner: Callable[[int], Iterable[float]],
    data_std: float | None = None,
) -> tuple[Node, ...]:
    """The first of `ends`, the n - 1 times `inner(n)`, and the last of `ends`; closed at sigma = 0."""
    start, end = ends
    closing = closes(schedule.data_std if data_std is None else data_std, end, to_zero)
    n = steps - closing
    nodes = (start, *map(schedule.node, inner(n)), *([end] if n else []))
    return (*nodes, schedule.node(schedule.t_clean)) if closing else nodes


def fall_of(length: float, n: int) -> float:
    """The `fall` of `focused` for n steps over `length` in log-SNR."""
    return FALL + FALL_OF_LONG * length / max(n, 1)


def center_of(data_std: float, center: float = CENTER) -> float:
    """Where `focused` is finest, in log nsr, for data of `data_std`."""
    return math.log(center * data_std / DATA_STD)


def rise_of(begin: float) -> float:
    """The `rise` of `focused` on a range that begins at `begin`, log of nsr over the center."""
    return RISE * min(1.0, max(0.0, begin) / WIDE)


def evenly(at: Callable[[float], float]) -> Callable[[int], Iterable[float]]:
    """The times `at(u)` for the n - 1 values of u evenly between 1 and 0."""
    return lambda n: (at(1 - i / n) for i in range(1, n))


@Grid
def log_snr(schedule: Schedule, steps: int, *, order: float = 1.0, to_zero: bool | None = None) -> tuple[Node, ...]:
    """Uniform in half log-SNR. The grid of DPM-Solver, UniPC, DPM-Solver-v3 and EVODiff on pixel models.

    `order` makes it uniform in (lam - lam_T)^(1 / order): SA-Solver's grids, with finer steps among noisy levels.
    """
    if not 0 < order < math.inf:
        raise ValueError(f"order must be positive; got order={order!r}")
    noisy, clean = schedule.lam_range
    at = evenly(lambda u: schedule.time_at(noisy + (1 - u) ** order * (clean - noisy)))
    return between(schedule, steps, to_zero, lam_ends(schedule), at)


@Grid
def karras(schedule: Schedule, steps: int, *, rho: float = 7.0, to_zero: bool | None = None) -> tuple[Node, ...]:
    """Uniform in (sigma / alpha)^(1 / rho): Karras et al. (2022), eq. (5), rho = 7 there."""
    if not 0 < rho < math.inf:
        raise ValueError(f"rho must be positive; got rho={rho!r}")
    high, low = (math.exp(-lam / rho) for lam in schedule.lam_range)
    at = evenly(lambda u: schedule.time_at(-rho * math.log(low + u * (high - low))))
    return between(schedule, steps, to_zero, lam_ends(schedule), at)


@Grid
def kl_optimal(schedule: Schedule, steps: int, *, to_zero: bool | None = None) -> tuple[Node, ...]:
    """Uniform in arctan(sigma / alpha): finest where signal and noise are equal.

    The optimum for Gaussian data in closed form: Sabour et al., Align Your Steps (2024).
    """
    high, low = (math.atan(math.exp(-lam)) for lam in schedule.lam_range)
    at = evenly(lambda u: schedule.time_at(-math.log(math.tan(low + u * (high - low)))))
    return between(schedule, steps, to_zero, lam_ends(schedule), at)


@Grid
def focused(
    schedule: Schedule,
    steps: int,
    *,
    data_std: float | None = None,
    center: float = CENTER,
    rise: float | None = None,
    fall: float | None = None,
    to_zero: bool | None = None,
) -> tuple[Node, ...]:
    """Finest where data are decided: density 1 / (z^rise + z^-fall) in log-SNR, z = nsr / center.

    The grid of EVODiff's default; nsr = sigma / alpha. The conditional entropy of an image falls fastest near `center`
    and, on the clean side, in proportion to its power at that scale; noisier levels decide little. Errors of second or
    third order ask for a density like the cube root of that. `karras` is fall = 1 / rho without a noisy side,
    `log_snr` rise = fall = 0.

    `rise` None is 0.6 on ranges that begin at z = 18 or more, as EDM's and flows do, less of it in proportion to log z
    on others, and 0 from z = 1 on: 0.14 on Stable Diffusion's. Where a range begins near the center much is decided in
    the first step, which is of order 1 and is to be short. `fall` None is 0.22 + 0.09 h for steps of the mean length h
    in log-SNR: long ones are better spent on what is decided than on its details. These numbers were chosen on the
    development problems of docs/quality.md.

    `center` is for data of standard deviation 0.5, as images in [-1, 1] are, and grows with `data_std`; None asks the
    schedule, for its `data_scale`.
    """
    if not 0 < center < math.inf:
        raise ValueError(f"center must be positive; got center={center!r}")
    for name, value in (("rise", rise), ("fall", fall)):
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"{name} must be finite and at least 0; got {name}={value!r}")
    if data_std is not None and not 0 < data_std < math.inf:
        raise ValueError(f"data_std must be None or positive and finite; got data_std={data_std!r}")
    lams = np.linspace(*schedule.lam_range, DENSITY_POINTS)
    z = -lams - center_of(data_std or schedule.data_scale, center)
    noisy = rise_of(float(z[0])) if rise is None else rise

    def inner(n: int) -> Iterable[float]:
        clean = fall_of(lams[-1] - lams[0], n) if fall is None else fall
        density = 1 / (np.exp(noisy * z) + np.exp(-clean * z))
        share = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
        at = 1 - (1 - np.arange(1, n) / n)
        return map(schedule.time_at, np.interp(at, share / share[-1], lams).tolist())

    return between(schedule, steps, to_zero, lam_ends(schedule), inner, data_std)


@Grid
def scire_nsr(schedule: Schedule, steps: int, *, k: float = 3.1, to_zero: bool | None = None) -> tuple[Node, ...]:
    """Uniform in log(nsr + k nsr_end), nsr = sigma / alpha: finer steps than log-SNR among the noisy levels.

    The grid of SciRE-Solver (Li et al., 2023), k = 3.1 in its code; k = 0 is `log_snr`.
    """
    if not 0 <= k < math.inf:
        raise ValueError(f"k must be finite and at least 0; got k={k!r}")
    high, low = (math.exp(-lam) for lam in schedule.lam_range)
    ratio = (high / low + k) / (1 + k)
    at = evenly(lambda u: schedule.time_at(-math.log(low * ((1 + k) * ratio**u - k))))
    return between(schedule, steps, to_zero, lam_ends(schedule), at)


@Grid
def time_uniform(schedule: Schedule, steps: int, *, to_zero: bool | None = None) -> tuple[Node, ...]:
    """Uniform in the schedule's clock (for `Flow`, before its shift). The usual grid of latent models."""
    return between(schedule, steps, to_zero, time_ends(schedule), evenly(schedule.ramp))


@Grid
def time_quadratic(schedule: Schedule, steps: int, *, to_zero: bool | None = None) -> tuple[Node, ...]:
    """Uniform in the square root of the clock (for `Flow`, before its shift): finer near clean data. DEIS' grid."""
    low = math.sqrt(schedule.t_min)
    width = math.sqrt(schedule.t_max) - low
    # ((low + u width)^2 - t_min) / (t_max - t_min), without its cancellation.
    at = evenly(lambda u: schedule.ramp(u * (2 * low + u * width) / (2 * low + width)))
    return between(schedule, steps, to_zero, time_ends(schedule), at)


@Grid
def uniform(schedule: Schedule, steps: int, *, to_zero: bool | None = None) -> tuple[Node, ...]:
    """Uniform in the variable that the schedule names: `log_snr`, or `time_uniform` for latent and flow models."""
    grid = log_snr if schedule.uniform == "lam" else time_uniform
    return grid(schedule, steps, to_zero=to_zero)


def time_ends(schedule: Schedule) -> tuple[Node, Node]:
    """The nodes at t_max and t_min."""
    return schedule.node(schedule.t_max), schedule.node(schedule.t_min)


def lam_ends(schedule: Schedule) -> tuple[Node, Node]:
    """The nodes at the ends of lam_range, which are t_max and t_min wherever log-SNR is finite there."""
    noisy, clean = (
        node if math.isfinite(node.lam) else schedule.node(schedule.time_at(lam))
        for node, lam in zip(time_ends(schedule), schedule.lam_range, strict=True)
    )
    return noisy, clean


def need_scipy(part: str, user: str) -> Any:
    """The module scipy.`part`, imported when a grid needs it."""
    try:
        return import_module(f"scipy.{part}")
    except ImportError as error:
        raise ImportError(f"{user} needs scipy: pip install 'fewstep[bench]'") from error


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
        raise ValueError(
            f"{name} must not start at sigma = 0, where the ODE is singular: leave that node out, or start at sigma_min"
        )
    falling = grid[1].lam > grid[0].lam
    for i, (s, t) in enumerate(pairwise(grid), start=1):
        if not (t.lam > s.lam if falling else t.lam < s.lam):
            raise ValueError(
                f"{name} must be strictly sorted by noise level, noisy to clean; "
                f"got time {t.time!r} after {s.time!r} at index {i}: sort them and drop repeats"
            )
    return grid
