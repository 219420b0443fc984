"""The noise levels that a diffusers config asks for, as nodes of the core. Numbers only: no tensors, no diffusers.

A config describes either a table of betas (`Discrete`; sigma below means sigma / alpha) or a flow (`Flow`). The
levels of a run follow from it as in diffusers, except that

- no level is visited twice. Where diffusers' rounding repeats an entry (more steps than entries; float timesteps cut to
  integers), the times are fractions; where final_sigmas_type="sigma_min" would repeat the last level (a call for
  nothing), the levels are spread over one more step, or the run ends at sigma = 0;
- a flow's default levels are 1 - i / N before the shift: N equal steps to sigma = 0, as its pipelines pass them.
  FlowMatchEuler's default ends at the shifted 1 / T instead, from where a call goes to the last step to 0;
- custom `timesteps` alone are what the model is told and where it is called; for a flow, sigma = t / T without shift;
- what the model is told belongs to the level. `timesteps` beside `sigmas` say what it is told at these, and so between
  them, where an option puts the levels elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..arguments import count
from ..grid import (
    Grid,
    GridFunction,
    beta,
    checked,
    focused,
    karras,
    leading,
    linspace,
    log_snr,
    time_uniform,
    trailing,
)
from ..schedule import EDM, Discrete, Flow, Node
from ..solvers.core.base import choice

__all__ = ["Levels", "betas", "level", "levels", "part_of", "table_of", "told", "training_levels"]

Array = NDArray[np.float64]
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")
SPACINGS = ("linspace", "leading", "trailing")
MOST_BETA = 0.999  # of the cosine schedule
COSINE_OFFSET = 0.008
SIGMOID_END = 6.0
UNCOUNTED = 1000  # levels of a flow whose clock runs from 0 to 1 and counts none: as many as the others have


class Levels(NamedTuple):
    """`timesteps[i]` is what the model is told at `nodes[i]`: int64 for entries of a table, else float32.

    The last node is where the run ends, and has no timestep.
    """

    nodes: tuple[Node, ...]
    timesteps: NDArray[Any]


def betas(config: Any) -> Array:
    """The betas that the model was trained with, rescaled to zero terminal SNR if the config says so."""
    size, start, end = config.num_train_timesteps, config.beta_start, config.beta_end
    if config.trained_betas is not None:
        found = np.asarray(config.trained_betas, dtype=np.float64)
    elif config.beta_schedule == "linear":
        found = np.linspace(start, end, size)
    elif config.beta_schedule == "scaled_linear":
        found = np.linspace(math.sqrt(start), math.sqrt(end), size) ** 2
    elif config.beta_schedule == "squaredcos_cap_v2":
        angles = (np.linspace(0, 1, size + 1) + COSINE_OFFSET) / (1 + COSINE_OFFSET) * (math.pi / 2)
        found = np.minimum(1 - np.cos(angles[1:]) ** 2 / np.cos(angles[:-1]) ** 2, MOST_BETA)
    else:
        choice("beta_schedule", config.beta_schedule, BETA_SCHEDULES)
        found = start + (end - start) / (1 + np.exp(-np.linspace(-SIGMOID_END, SIGMOID_END, size)))
    if config.snr_shift_scale != 1:
        table = np.cumprod(1 - found)  # SNR divided by the scale, as CogVideoX has it
        table /= config.snr_shift_scale + (1 - config.snr_shift_scale) * table
        found = 1 - table / np.concatenate([[1.0], table[:-1]])
    return _zero_snr(found) if config.rescale_betas_zero_snr else found


def _zero_snr(found: Array) -> Array:
    """sqrt(alphas_cumprod) shifted to end at 0 and scaled to start where it did: Lin et al. (2023), Algorithm 1."""
    roots = np.sqrt(np.cumprod(1 - found))
    table = ((roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))) ** 2
    return np.asarray(1 - table / np.concatenate([[1.0], table[:-1]]))


def table_of(found: Array, data_std: float | None = None) -> Discrete:
    """The schedule of these betas."""
    return Discrete(np.cumprod(1 - found).tolist(), data_std=data_std)


def part_of(schedule: Discrete, lowest_lam: float) -> Discrete:
    """The schedule without the entries whose half log-SNR is below `lowest_lam`; itself if there is none."""
    table = np.array(schedule.alphas_cumprod)
    kept = table[0.5 * np.log(table / (1 - table)) >= lowest_lam]
    if len(kept) < 2:
        raise ValueError(f"lambda_min_clipped={lowest_lam!r} leaves {len(kept)} of {len(table)} timesteps: lower it")
    return schedule if len(kept) == len(table) else Discrete(kept.tolist(), data_std=schedule.data_std)


def training_levels(config: Any, schedule: Discrete | Flow) -> Levels:
    """Every level that the model was trained on: the timesteps of a scheduler before `set_timesteps`."""
    if isinstance(schedule, Discrete):
        times = range(len(schedule.alphas_cumprod) - 1, -1, -1)
        nodes = (*map(schedule.node, times), schedule.node(schedule.t_clean))
        told = _continuous(nodes) if config.timestep_type == "continuous" else np.array(times, dtype=np.float32)
        return Levels(nodes, told)
    size = config.num_train_timesteps
    ratio = config.flow_shift
    values = [ratio * i / (size + (ratio - 1) * i) for i in range(size, 0, -1)]
    return _told(config, [*values, 0.0])


def level(config: Any, schedule: Discrete | Flow, timestep: float) -> Node:
    """The noise level that the model was trained with at what it is told, whatever a run plans."""
    if isinstance(schedule, Flow):
        sigma = _flow_sigma(config, timestep)
        return Node(sigma, 1 - sigma, sigma)
    if config.timestep_type == "continuous":
        return _at_ratio(schedule, math.exp(4 * timestep))
    return schedule.node(timestep)


def levels(
    config: Any,
    schedule: Discrete | Flow,
    steps: int | None,
    sigmas: Iterable[float] | None,
    mu: float | None,
    timesteps: Iterable[float] | None,
    own: GridFunction | None = None,
) -> Levels:
    """The levels of a run; the arguments are those of `set_timesteps`, and a grid in place of the config's."""
    choice("final_sigmas_type", config.final_sigmas_type, ("zero", "sigma_min"))
    levels_given, times_given = _values(sigmas), _values(timesteps)
    if levels_given is not None and len(levels_given) > 1 and levels_given[-1] == 0:
        levels_given = levels_given[:-1]  # the end; others leave it out
    given = {len(values) for values in (levels_given, times_given) if values is not None}
    counts = given | ({steps} if steps is not None else set())
    if len(counts) != 1:
        raise ValueError(
            "set_timesteps needs num_inference_steps, sigmas or timesteps, and the same number of each; "
            f"got num_inference_steps={steps!r}, {_size(sigmas)} sigmas and {_size(timesteps)} timesteps"
        )
    name, values = ("timesteps", times_given) if levels_given is None else ("sigmas", levels_given)
    rising = name == "timesteps" and config.invert_sigmas  # as such models are told them
    if values is not None and not (np.diff(values if rising else -values) > 0).all():
        raise ValueError(f"{name} must be strictly sorted, noisy to clean; got {values.tolist()!r}")
    (asked,) = counts
    number = count(asked)
    if number < 1:
        raise ValueError(f"num_inference_steps must be an integer of at least 1; got {asked!r}")
    if own is not None and not given:
        found = told(config, schedule, tuple(own(schedule, number)))
    elif isinstance(schedule, Flow):
        found = _flow(config, number, levels_given, mu, times_given)
    else:
        found = _discrete(config, schedule, number, levels_given, times_given)
    return Levels(checked(found.nodes, "the noise levels"), found.timesteps)


def told(config: Any, schedule: Discrete | Flow, nodes: tuple[Node, ...]) -> Levels:
    """These nodes, and what the model is told at all but the last."""
    return _discrete_at(config, schedule, nodes) if isinstance(schedule, Discrete) else _flow_at(config, nodes)


def _values(given: Any) -> Array | None:
    if given is None:
        return None
    values = np.asarray(given.tolist() if hasattr(given, "tolist") else list(given), dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"sigmas and timesteps must be lists of numbers; got shape {values.shape}")
    return values


def _size(given: Any) -> int:
    return 0 if given is None else len(given)


def _spaced_in_sigma(config: Any) -> Grid | None:
    """The grid in sigma that the config asks for. diffusers' "lu lambdas" are even steps of log-SNR."""
    if config.use_karras_sigmas:
        return karras
    if config.use_focused_sigmas:
        return focused
    if config.use_exponential_sigmas or config.use_lu_lambdas:
        return log_snr  # of EDM, that is: even steps of log sigma
    return beta if config.use_beta_sigmas else None


def _between(grid: Grid, data_std: float | None, low: float, high: float, steps: int, to_zero: bool) -> list[float]:
    """steps + 1 values of sigma from `high` to `low`, or to 0 by one step more than to `low`.

    `focused` spares that step, which is a call, where nobody would see it.
    """
    closing = None if to_zero and grid == focused else to_zero
    return [node.sigma for node in grid(EDM(low, high, data_std=data_std), steps, to_zero=closing)]


# Tables of betas


def _discrete(config: Any, schedule: Discrete, steps: int, sigmas: Array | None, timesteps: Array | None) -> Levels:
    grid = _spaced_in_sigma(config)
    if sigmas is not None:
        nodes = [_at_ratio(schedule, sigma) for sigma in sigmas.tolist()]
        nodes.append(_end(config, schedule, nodes[-1]))
    elif timesteps is not None:
        nodes = [level(config, schedule, t) for t in timesteps.tolist()]
        nodes.append(_end(config, schedule, nodes[-1]))
    elif grid is not None:
        low = schedule.node(schedule.t_min).nsr if config.sigma_min is None else config.sigma_min
        high = schedule.node(schedule.t_max).nsr if config.sigma_max is None else config.sigma_max
        to_zero = config.final_sigmas_type == "zero"
        nodes = [_at_ratio(schedule, ratio) for ratio in _between(grid, config.data_std, low, high, steps, to_zero)]
    else:
        nodes = list(_spaced_in_time(config, schedule, steps))
    if sigmas is not None and timesteps is not None:
        return Levels(tuple(nodes), timesteps.astype(np.float32))
    return _discrete_at(config, schedule, nodes)


def _discrete_at(config: Any, schedule: Discrete, nodes: Sequence[Node]) -> Levels:
    if config.timestep_type == "continuous":
        return Levels(tuple(nodes), _continuous(nodes))
    if config.timestep_type == "integer":
        nodes = _at_entries(schedule, nodes)
    times = np.array([node.time for node in nodes[:-1]])
    return Levels(tuple(nodes), times.astype(np.int64 if (times == times.round()).all() else np.float32))


def _at_entries(schedule: Discrete, nodes: Sequence[Node]) -> list[Node]:
    """Each node at the nearest entry of the table that no other takes; a clean end stays."""
    noisy = [node.time for node in nodes if node.sigma]
    place = np.arange(len(noisy))
    times = np.minimum.accumulate(np.rint(noisy) + place) - place
    times = np.maximum(times, place[::-1])
    return [*map(schedule.node, times.tolist()), *(node for node in nodes if not node.sigma)]


def _continuous(nodes: Sequence[Node]) -> NDArray[np.float32]:
    """What models of continuous time are told: log(sigma) / 4, as in EDM."""
    return np.array([math.log(node.nsr) / 4 for node in nodes[:-1]], dtype=np.float32)


def _at_ratio(schedule: Discrete, ratio: float) -> Node:
    """The node of sigma / alpha = ratio; the model is told the nearest time that it knows."""
    if ratio == 0:
        return schedule.node(schedule.t_clean)
    if not 0 < ratio < math.inf:
        raise ValueError(f"sigmas must be positive and finite; got {ratio!r}")
    time = min(max(schedule.time_at(-math.log(ratio)), schedule.t_min), schedule.t_max)
    alpha = 1 / math.sqrt(1 + ratio**2)
    return Node(time, alpha, ratio * alpha)


def _end(config: Any, schedule: Discrete, last: Node) -> Node:
    lowest = schedule.node(schedule.t_min)
    ends_noisy = config.final_sigmas_type == "sigma_min" and lowest.lam > last.lam
    return lowest if ends_noisy else schedule.node(schedule.t_clean)


def _spaced_in_time(config: Any, schedule: Discrete, steps: int) -> tuple[Node, ...]:
    """Spaced as diffusers' multistep schedulers have it, N + 1 entries of which the last is left out."""
    choice("timestep_spacing", config.timestep_spacing, SPACINGS)
    size = len(schedule.alphas_cumprod)
    to_zero = config.final_sigmas_type == "zero"
    if steps >= size:
        return time_uniform(schedule, steps, to_zero=to_zero)
    if config.timestep_spacing == "linspace":
        return linspace(schedule, steps, drop_last=True, to_zero=to_zero)
    if config.timestep_spacing == "trailing":
        return trailing(schedule, steps, to_zero=to_zero)
    room = size - 1 - steps * (size // (steps + 1))
    return leading(schedule, steps, offset=min(config.steps_offset, room), drop_last=True, to_zero=to_zero)


# Flows


class Shift(NamedTuple):
    """From the levels that a pipeline has in mind to those of the run, and back."""

    ratio: float = 1.0
    stretch: float = 1.0

    def __call__(self, values: Array) -> Array:
        shifted = self.ratio * values / (1 + (self.ratio - 1) * values)
        return np.asarray(shifted if self.stretch == 1 else 1 - (1 - shifted) * self.stretch)

    def back(self, values: Array) -> Array:
        shifted = values if self.stretch == 1 else 1 - (1 - values) / self.stretch
        return np.asarray(shifted / (self.ratio - (self.ratio - 1) * shifted))


def _flow(config: Any, steps: int, sigmas: Array | None, mu: float | None, timesteps: Array | None) -> Levels:
    floor = 1 / (config.num_train_timesteps if config.num_train_timesteps > 1 else UNCOUNTED)
    given = sigmas
    if sigmas is None and timesteps is not None:
        given = np.array([_flow_sigma(config, t) for t in timesteps.tolist()])
    if given is not None and not (given.min() > 0 and given.max() <= 1):
        name = "timesteps" if sigmas is None else "sigmas"
        raise ValueError(f"the sigmas of a flow must lie in (0, 1]; got {given.tolist()!r}, from {name}")
    grid = _spaced_in_sigma(config)
    # Given levels, which many pipelines make themselves, lead to 0, and so do those that end at a visible
    # `shift_terminal`. Grids of log-SNR take where they start from given ones, not where they end: else how the same
    # option ends would depend on the pipeline.
    kept = None if _in_log_snr(config) else given
    to_zero = config.final_sigmas_type == "zero" or kept is not None or bool(config.shift_terminal)
    if kept is not None:
        values = kept
    elif grid is not None:
        values = np.array([1.0 if given is None else given[0], floor])
    else:
        values = 1 - np.arange(steps) / steps if to_zero else np.linspace(1, floor, steps + 1)
    shift = Shift() if sigmas is None and timesteps is not None else _shift(config, values, mu)
    values = shift(values)
    if grid is not None and len(values) > 1:
        run = _flow_between(config, grid, values, steps, to_zero)
    else:
        # Custom levels that end above sigma = 0 have no level of their own to end at.
        run = values.tolist() if len(values) > steps else [*values.tolist(), 0.0]
    found = _told(config, run)
    if sigmas is None or timesteps is None:
        return found
    pairs = dict(zip(sigmas.tolist(), timesteps.tolist(), strict=True))
    pairs = {end: _clock(config, end) for end in (0.0, 1.0)} | pairs
    known = sorted(pairs)
    told = np.interp(shift.back(np.array(run[:-1])), known, [pairs[sigma] for sigma in known])
    return Levels(found.nodes, told.astype(np.float32))


def _flow_sigma(config: Any, timestep: float) -> float:
    share: float = timestep / config.num_train_timesteps
    return 1 - share if config.invert_sigmas else share


def _clock(config: Any, sigma: float) -> float:
    return float((1 - sigma if config.invert_sigmas else sigma) * config.num_train_timesteps)


def _shift(config: Any, values: Array, mu: float | None) -> Shift:
    """As the config has it; stretched so that the last level is `shift_terminal`, if there is more than one."""
    ratio = config.flow_shift
    if config.use_dynamic_shifting:
        choice("time_shift_type", config.time_shift_type, ("exponential", "linear"))
        if mu is None:
            raise ValueError(
                "use_dynamic_shifting=True needs mu, which pipelines compute from the size of the image, and this one "
                "does not: give the shift itself, from_config(config, use_dynamic_shifting=False, shift=...); for a "
                "mu it is exp(mu), or mu with time_shift_type='linear'"
            )
        ratio = math.exp(mu) if config.time_shift_type == "exponential" else mu
    last = float(Shift(ratio)(values[-1:])[0])
    if not config.shift_terminal or last == 1:
        return Shift(ratio)
    return Shift(ratio, (1 - config.shift_terminal) / (1 - last))


def _in_log_snr(config: Any) -> bool:
    return bool(config.use_lu_lambdas or config.use_focused_sigmas)


def _flow_between(config: Any, grid: Grid, values: Array, steps: int, to_zero: bool) -> list[float]:
    """In sigma / alpha if an end is given so or the grid is of log-SNR; else in sigma, between the ends of values."""
    if not _in_log_snr(config) and config.sigma_min is None and config.sigma_max is None:
        return _between(grid, config.data_std, float(values[-1]), float(values[0]), steps, to_zero)
    most = math.exp(Flow.LAM_END)
    low, high = (min(Node(v, 1 - v, v).nsr, most) for v in (values[-1], values[0]))
    low = low if config.sigma_min is None else config.sigma_min
    high = high if config.sigma_max is None else config.sigma_max
    return [ratio / (1 + ratio) for ratio in _between(grid, config.data_std, low, high, steps, to_zero)]


def _told(config: Any, values: list[float]) -> Levels:
    return _flow_at(config, tuple(Node(v, 1 - v, v) for v in values))


def _flow_at(config: Any, nodes: tuple[Node, ...]) -> Levels:
    return Levels(nodes, np.array([_clock(config, node.sigma) for node in nodes[:-1]], dtype=np.float32))
