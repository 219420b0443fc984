"""`transitions`: what each step of a solver leaves on one model, and what the papers' rule weighs there.

EVODiff's papers ask two things of a step: that its transition have little variance, and that what the model then makes
of the state be near to the image. Both are measured against the converged path from the same noise, x(lam), that ends
at x_0, over samples and their d elements:

    state(lam)  = E |x^ - x(lam)|^2 / (alpha^2 d)        what the steps so far have added, in units of the image
    answer(lam) = E |D(x^) - x_0|^2 / d                  the error of reconstruction at the state that they led to
    path(lam)   = E |D(x(lam)) - x_0|^2 / d              the same where no step erred: no solver can count on less

All solvers call at the same nodes, those of the default. eta and zeta are the shares that the papers' rule balances a
step by (`solvers.evodiff.paper` and `.published`), and `longest` ends the interval [1, 4 SNR_t / (SNR_s + SNR_t)] that
Proposition 3.2 gives the length of a step s -> t over that of the difference which corrects it: 1 for this rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .analysis import TEACHER, mse
from .prediction import Denoiser, schedule_of
from .sampling import plan, sample, solve, trajectory, unit_noise
from .schedule import Node, Schedule
from .solvers import DDIM, DPMSolverPP, EVODiff, RESingle, Solver, Stage

__all__ = ["Rule", "Transitions", "evaluations", "over_calls", "single_steps", "transitions"]

Vector = NDArray[np.float64]

USUAL: Mapping[str, Solver] = {"evodiff": EVODiff(), "ddim": DDIM(), "dpmpp-2m": DPMSolverPP(2)}
RULES: Mapping[str, Solver] = {"evodiff-paper": EVODiff(mode="paper"), "evodiff-published": EVODiff(mode="published")}
CALLS = (6, 8, 10, 14, 20)
FINEST = 4  # so that the path stays nearer to the solution than a run of as many calls: 4^3 times, by its order


@dataclass(frozen=True, eq=False)
class Rule:
    """Mean and standard deviation over samples of eta and zeta at each call; NaN where nothing is corrected."""

    eta: Vector
    eta_std: Vector
    zeta: Vector
    zeta_std: Vector


@dataclass(frozen=True, eq=False)
class Transitions:
    """At the half log-SNRs of the calls, `lams`: see above. `ends` are the RMSEs of the samples to x_0."""

    lams: Vector
    path: Vector
    state: Mapping[str, Vector]
    answer: Mapping[str, Vector]
    ends: Mapping[str, float]
    rules: Mapping[str, Rule]
    longest: Vector


def transitions(
    denoiser: Any,
    schedule: Schedule | None = None,
    *,
    shape: Sequence[int],
    nfe: int = 8,
    solvers: Mapping[str, Solver] = USUAL,
    seeds: Iterable[int] = range(32),
    by_seed: bool = False,
    batch: int = 16,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], object] | None = None,
) -> Transitions:
    """What each step of `solvers`, deterministic and of one call a step, leaves in runs of `nfe` calls.

    Arguments are as for `analyze`. Costs at least 42 evaluations and 4 `nfe` for each seed, and `nfe` for each solver
    and for each of the two rules. Raises ValueError where a solver does not call once at each of the default's nodes.
    """
    known, numbers = schedule_of(denoiser, schedule), _checked(seeds, batch, solvers)
    if taken := solvers.keys() & RULES:
        raise ValueError(f"solvers cannot be named {', '.join(taken)}, as the papers' rules are; got {solvers!r}")
    nodes, _ = plan(known, EVODiff(), nfe=nfe)
    plans = {name: _plan(name, solver, known, nodes) for name, solver in {**solvers, **RULES}.items()}
    fine = _fine(nfe)
    found: dict[tuple[str, str], list[Tensor]] = {}
    for chosen, own in _batches(denoiser, numbers, batch, by_seed, evaluations(nfe, len(solvers)), progress):
        start = unit_noise(chosen, shape, dtype=dtype, device=device) * nodes[0].sigma
        states, answers, x0 = _path(own, known, start, nodes, fine)
        _note(found, "path", "answer", [mse(answer, x0) for answer in answers])
        for name, stages in plans.items():
            run = list(_run(own, start, stages))
            ends = zip(run, states, nodes, strict=False)
            _note(found, name, "state", [mse(at.x, x) / node.alpha**2 for at, x, node in ends])
            _note(found, name, "answer", [mse(at.denoised, x0) for at in run])
            _note(found, name, "end", [mse(run[-1].led_to, x0)])
            for which in range(2):
                _note(found, name, ("eta", "zeta")[which], [at.weights[which] for at in run])
    values = {key: torch.cat(parts, 1).numpy() for key, parts in found.items()}
    snr = np.array([math.exp(2 * node.lam) for node in nodes])
    return Transitions(
        lams=np.array([node.lam for node in nodes[:nfe]]),
        path=values["path", "answer"].mean(1),
        state={name: values[name, "state"].mean(1) for name in solvers},
        answer={name: values[name, "answer"].mean(1) for name in solvers},
        ends={name: float(np.sqrt(values[name, "end"].mean())) for name in solvers},
        rules={name: _rule(values[name, "eta"], values[name, "zeta"]) for name in RULES},
        longest=np.array([4.0 if math.isinf(t) else 4 * t / (s + t) for s, t in pairwise(snr)])[:nfe],
    )


def evaluations(nfe: int, solvers: int = len(USUAL)) -> int:
    """What `transitions` costs for each seed, at most."""
    return nfe * (_fine(nfe) + solvers + len(RULES))


def _fine(nfe: int) -> int:
    """Into how many steps the converged path divides each of a run."""
    return max(FINEST, math.ceil(TEACHER / nfe))


def over_calls(
    denoiser: Any,
    schedule: Schedule | None = None,
    *,
    shape: Sequence[int],
    solvers: Mapping[str, Solver] | None = None,
    calls: Sequence[int] = CALLS,
    seeds: Iterable[int] = range(32),
    by_seed: bool = False,
    batch: int = 16,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], object] | None = None,
) -> dict[str, Vector]:
    """RMSE to the converged sample of `solvers`, each on its recommended grid, in so many `calls`.

    The solvers are by default the papers' single steps, `single_steps`: RE beside FD. Costs 42 evaluations for each
    seed and the sum of `calls` for each solver.
    """
    known, calls = schedule_of(denoiser, schedule), tuple(calls)
    chosen_solvers = single_steps(known) if solvers is None else solvers
    numbers = _checked(seeds, batch, chosen_solvers)
    if not calls:
        raise ValueError("calls must name at least one number of calls; got none")
    cost = TEACHER + len(chosen_solvers) * sum(calls)
    found: dict[str, list[Tensor]] = {name: [] for name in chosen_solvers}
    for chosen, own in _batches(denoiser, numbers, batch, by_seed, cost, progress):
        noise = unit_noise(chosen, shape, dtype=dtype, device=device)
        x0 = sample(own, noise, nfe=TEACHER, schedule=known)
        for name, solver in chosen_solvers.items():
            ends = [sample(own, noise, nfe=nfe, solver=solver, schedule=known, seeds=chosen) for nfe in calls]
            found[name].append(torch.stack([mse(end, x0) for end in ends]))
    return {name: np.sqrt(torch.cat(parts, 1).mean(1).numpy()) for name, parts in found.items()}


def single_steps(schedule: Schedule) -> dict[str, Solver]:
    """The papers' FD iteration, and RE at both ends of the intervals that they recommend, in the field that fits."""
    field: Literal["noise", "data"] = "data" if schedule.node(schedule.ramp(1.0)).alpha == 0 else "noise"
    return {
        "FD": RESingle(field, gamma=0.0),
        "RE, low": RESingle(field, gamma="low", ratio="low"),
        "RE, high": RESingle(field, gamma="high", ratio="high"),
    }


@dataclass(frozen=True)
class _At:
    """One call: the state, its answer, the two shares of each sample, and the state that it led to."""

    x: Tensor
    denoised: Tensor
    weights: tuple[Tensor, Tensor]
    led_to: Tensor


def _checked(seeds: Iterable[int], batch: int, solvers: Mapping[str, Solver]) -> list[int]:
    numbers = list(seeds)
    if not numbers or batch < 1:
        raise ValueError(f"seeds must be 1 or more, and batch; got {len(numbers)} seeds, batch={batch!r}")
    if not isinstance(solvers, Mapping) or not all(hasattr(solver, "plan") for solver in solvers.values()):
        raise TypeError(f"solvers must be solvers by name, such as {{'ddim': DDIM()}}; got {solvers!r}")
    return numbers


def _batches(
    denoiser: Any,
    seeds: Sequence[int],
    batch: int,
    by_seed: bool,
    cost: int,
    progress: Callable[[int, int], object] | None,
) -> Iterator[tuple[Sequence[int], Denoiser]]:
    """The seeds of each batch, and their denoiser; `progress` is then told of `cost` evaluations a seed."""
    for first in range(0, len(seeds), batch):
        chosen = seeds[first : first + batch]
        yield chosen, denoiser(chosen) if by_seed else denoiser
        if progress is not None:
            progress((first + len(chosen)) * cost, len(seeds) * cost)


def _plan(name: str, solver: Solver, schedule: Schedule, nodes: Sequence[Node]) -> Sequence[Stage]:
    stages = solver.plan(schedule, nodes)
    if [stage.node for stage in stages] != list(nodes[: len(stages)]) or len(stages) < len(nodes) - 1:
        raise ValueError(f"{name} does not call once at each node, told its level: choose solvers of one call a step")
    if any(stage.noise for stage in stages):
        raise ValueError(f"{name} draws noise, so that it has no path to be measured against: choose another")
    return stages


def _path(
    denoiser: Denoiser, schedule: Schedule, start: Tensor, nodes: Sequence[Node], fine: int
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """The states and answers of the converged path at the nodes where solvers call, and its end."""
    finer = [nodes[0]]
    for s, t in pairwise(nodes):
        inner = [s.lam + (t.lam - s.lam) * i / fine for i in range(1, fine)] if t.sigma > 0 else []
        finer += [*(schedule.node(schedule.time_at(lam)) for lam in inner), t]
    before, states, answers = start, {}, {}
    for step in trajectory(denoiser, start, finer, schedule=schedule):
        states[step.node], answers[step.node] = before, step.denoised
        before = step.x
    calls = [node for node in nodes if node in states]
    return [states[node] for node in calls], [answers[node] for node in calls], before


def _run(denoiser: Denoiser, start: Tensor, stages: Sequence[Stage]) -> Iterator[_At]:
    """The loop of `sampling.drive`, told with what it weighs."""
    run = solve(start, stages[0].node, stages, start.dtype, lambda _: start, False)
    given, state = next(run)
    nothing = start.new_full((len(start),), math.nan)
    for stage in stages:
        x = given.clone()  # the model may work in place on its input, or answer in one buffer
        with torch.no_grad():
            denoised = denoiser(given, stage.node.time)
        answer = denoised.clone() if isinstance(denoised, Tensor) else denoised
        before, (given, state) = state, run.send(denoised)
        with torch.inference_mode():
            weights = stage.weights(before, x, answer) if hasattr(stage, "weights") else None
            eta, zeta = (nothing, nothing) if weights is None else (each.flatten(1).mean(1) for each in weights)
        yield _At(x, answer, (eta, zeta), given)


def _note(found: dict[tuple[str, str], list[Tensor]], name: str, what: str, rows: Sequence[Tensor]) -> None:
    found.setdefault((name, what), []).append(torch.stack([row.cpu().double() for row in rows]))


def _rule(eta: NDArray[np.float64], zeta: NDArray[np.float64]) -> Rule:
    return Rule(eta.mean(1), eta.std(1), zeta.mean(1), zeta.std(1))
