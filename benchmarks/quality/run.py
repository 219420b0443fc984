"""The bench of image quality: EVODiff's default beside the field, on problems whose solution is known.

A cell is a problem, a schedule and a budget. In each, EVODiff() runs on its own grid, and every peer on all that suit
the schedule; the best peer and grid are chosen per cell and metric afterwards, an oracle for the peers. Three usual
peers run on all grids, on a few samples, the others on those grids where these are not far behind; of all peers those
that are not far behind there run in a heat, on a part of the samples, and those that come near the best of it on all.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewstep.bench.metrics import Moments, frechet_distance, gains, resamples, rmses
from fewstep.grid import (
    Grid,
    beta,
    beta57,
    bong_tangent,
    dm_nonuniform,
    focused,
    gits,
    karras,
    kl_optimal,
    linear_quadratic,
    log_snr,
    scire_nsr,
    time_quadratic,
    time_uniform,
)
from fewstep.schedule import EDM, Flow, Schedule, VPLinear
from fewstep.solvers import DPMSolverV3, EVODiff, Solver
from fewstep.statistics import EMS, estimate_ems
from fewstep.table import SOLVERS

from ..problems import PROBLEMS, Problem, Source
from ..problems.base import batches
from ..problems.suite import DATA
from .ratios import NEGLIGIBLE, OURS, PUBLISHED, Cell
from .results import Distance, Key, Measurement, Results, rms

__all__ = [
    "FULL",
    "OURS_ELSEWHERE",
    "QUICK",
    "SETTINGS",
    "SINGLE_IMAGES",
    "Plan",
    "candidates",
    "cells",
    "fill",
    "finished",
    "former",
    "on_grids",
    "statistics_of",
    "trial",
]

CONVERGED = "converged"
OWN_GRID = "own"
QUALIFYING = 4  # samples that all run on first
QUALIFIES = 2.0  # times the least RMSE there: who is further behind runs in no heat, a grid with no other peers
SUIT = 5  # grids, at most
USUAL = ("dpmpp-2m", "unipc-3", "ipndm-4")  # in log-SNR with and without correction, and in sigma
ANYWHERE = {OURS, PUBLISHED, *USUAL}  # who runs on every grid
HEAT = 4  # one in so many
CONTENDS = 1.25  # of the best peer's RMSE, or Fréchet distance, in the heat: who is further behind runs no further
CONTENDERS = 4  # by each of these, at most
INFORMED = "dpm-solver-v3-3"  # the peer that needs statistics
# The order of the last step is chosen by the run, mostly 1. These end in a higher one too, on the three usual grids.
HIGHER_END = "-higher-final"
HIGHER: Mapping[str, int] = {"dpmpp-2m": 2, "dpmpp-3m": 2, "unipc-2": 2, "unipc-3": 2, "deis-3": 4, INFORMED: 2}
USUAL_GRIDS = 3
# Whom this bench had before, on the usual grids: the field of 2023, told apart so that figures stay comparable.
FORMER = {PUBLISHED, "ddim", "heun", "ipndm-4", *(f"{peer}{HIGHER_END}" for peer in HIGHER)}
FRECHET_BUDGETS = (5, 6, 8)
FRECHET_RESAMPLES = 50  # each takes as long as the distance itself
POINTS, STATISTICS_SAMPLES = 60, 128  # of the statistics of DPM-Solver-v3

Targets = Mapping[str, Moments]


class Setting(NamedTuple):
    """A schedule, and the grids that peers choose from, the more usual first."""

    schedule: Schedule
    grids: Mapping[str, Grid]


# Grids of the library that suit any schedule; the usual ones come first in each setting.
FORMULAS: Mapping[str, Grid] = {
    "focused": focused,
    "KL-optimal": kl_optimal,
    "DMN": dm_nonuniform,
    "beta": beta,
    "NSR": scire_nsr,
    "time²": time_quadratic,
}
SETTINGS: Mapping[str, Setting] = {
    "VE": Setting(
        EDM(),
        {"log-SNR": log_snr, "ρ = 7": karras, "ρ = 3": karras(rho=3), **FORMULAS, "GITS": gits(model="cifar10")},
    ),
    "VP": Setting(VPLinear(), {"log-SNR": log_snr, "ρ = 7": karras, "time": time_uniform, **FORMULAS}),
    "flow": Setting(
        Flow(),
        {
            "time": time_uniform,
            "log-SNR": log_snr,
            "ρ = 7": karras,
            **FORMULAS,
            "beta57": beta57,
            "bong_tangent": bong_tangent,
            "linear-quadratic": linear_quadratic,
        },
    ),
}
SINGLE_IMAGES = focused(center=3, rise=1, fall=1)  # the best on the ideal denoiser of the split "dev"
OURS_ELSEWHERE: Mapping[str, Grid] = {repr(SINGLE_IMAGES): SINGLE_IMAGES}  # besides its own grid and the peers'


@dataclass(frozen=True)
class Plan:
    """How much is measured: of each problem one `share`-th of its samples, peers on the first `grids` grids, if
    there are so many.

    Published EVODiff is always among the peers. elsewhere: whether ours is measured on the grids of the peers too, to
    tell what a loss owes to the grid. frechet: whether distances between sets are measured.
    """

    name: str
    problems: tuple[str, ...]
    schedules: tuple[str, ...]
    budgets: tuple[int, ...]
    peers: tuple[str, ...]
    share: int
    grids: int
    elsewhere: bool
    frechet: bool


FULL = Plan(
    "full",
    problems=tuple(PROBLEMS),
    schedules=tuple(SETTINGS),
    budgets=(5, 6, 8, 10, 12, 15, 20),
    peers=(
        "ddim",
        "heun",
        "dpmpp-2m",
        "dpmpp-3m",
        "unipc-2",
        "unipc-3",
        "deis-3",
        "ipndm-4",
        "gradient-estimation",
        "cab-2",
        "cab-2-half",
        "res-multistep",
        "res-3m",
        "reab-2",
        "reab-3",
        "f-dpm",
        "exp-heun",
        INFORMED,
        *(f"{peer}{HIGHER_END}" for peer in HIGHER),
    ),
    share=1,
    grids=99,
    elsewhere=True,
    frechet=True,
)
QUICK = Plan(
    "quick",
    problems=("mixture", "ideal", "model", "guided-4"),
    schedules=("VE", "flow"),
    budgets=(5, 8, 12),
    peers=("dpmpp-2m", "unipc-2", "unipc-3", "deis-3", "ipndm-4", "gradient-estimation", "cab-2-half", "reab-2"),
    share=8,
    grids=2,
    elsewhere=False,
    frechet=False,
)


class Candidate(NamedTuple):
    """A solver on a grid, by name; `grid` None is the solver's own."""

    name: str
    solver: Solver
    grid_name: str
    grid: Grid | None


def fill(
    source: Source,
    folder: Path,
    plan: Plan,
    names: Sequence[str],
    say: Callable[[str], object],
    again: Sequence[str] = (),
) -> None:
    """Measure what `folder` does not hold yet, problem by problem; `again` names solvers to measure anew."""
    for name in names:
        problem = _cut(PROBLEMS[name].make(name, source), plan)
        results = Results(folder / name, problem.fingerprint)
        for solver in again:
            results.forget(solver)
            results.heats.forget(solver)
        targets = _targets(problem, results) if plan.frechet else {}
        statistics = statistics_of(problem, results) if INFORMED in plan.peers else None
        for schedule in plan.schedules:
            say(f"{name}, {schedule} ...")
            _fill_schedule(problem, schedule, plan, results, targets, statistics)


def _fill_schedule(
    problem: Problem, name: str, plan: Plan, results: Results, targets: Targets, statistics: EMS | None
) -> None:
    exact, targets = _references(problem, name, results, targets)
    floor: Key = (name, 0, CONVERGED, OWN_GRID)
    if targets and not results.holds(floor, targets, problem.many):
        schedule = SETTINGS[name].schedule
        images = torch.cat([problem.solution(schedule, part) for part in batches(problem.seeds(problem.many))])
        results.add(Measurement(*floor, [], [], [], _distances(problem, images, targets, FRECHET_RESAMPLES)))
    heat, heats = _heat(problem), results.heats
    few = dataclasses.replace(problem, samples=min(QUALIFYING, heat.samples))
    everyone = list(candidates(name, plan, statistics))

    def first(nfe: int, suits: set[str]) -> None:
        for candidate in everyone:
            key = name, nfe, candidate.name, candidate.grid_name
            if _due(candidate.name, candidate.grid_name, suits) and heats.get(key) is None:
                heats.add(_measured(few, name, candidate, nfe, exact[: few.samples], {}, resampled=0))

    for nfe in plan.budgets:
        wanted = targets if nfe in FRECHET_BUDGETS else {}
        first(nfe, set())
        suits = _suits(_ran(heats, name, nfe))
        first(nfe, suits)
        ran = _ran(heats, name, nfe)
        qualified = _qualified(ran) | _qualified(former(ran))
        for candidate in everyone:
            key = name, nfe, candidate.name, candidate.grid_name
            if key[2:] in qualified and not heats.holds(key, wanted, heat.many, heat.samples):
                heats.add(_measured(heat, name, candidate, nfe, exact[: heat.samples], wanted, resampled=0))
        ran = _ran(heats, name, nfe)
        contenders = _contenders(ran) | _contenders(former(ran))
        for candidate in everyone:
            key = name, nfe, candidate.name, candidate.grid_name
            if key[2:] in contenders and not results.holds(key, wanted, problem.many):
                results.add(_measured(problem, name, candidate, nfe, exact, wanted, FRECHET_RESAMPLES))


def _heat(problem: Problem) -> Problem:
    return dataclasses.replace(problem, samples=-(-problem.samples // HEAT), many=-(-problem.many // HEAT))


def _ran(heats: Results, schedule: str, nfe: int) -> list[Measurement]:
    return sorted((each for each in heats if each.key[:2] == (schedule, nfe)), key=lambda each: each.key)


def former(ran: Sequence[Measurement]) -> list[Measurement]:
    """Ours and the field of 2023."""
    return [
        each
        for each in ran
        if each.key[2:] == (OURS, OWN_GRID)
        or (each.solver in FORMER and each.grid in list(SETTINGS[each.schedule].grids)[:USUAL_GRIDS])
    ]


def _suits(ran: Sequence[Measurement]) -> set[str]:
    """The best grids of the usual peers on which one of these is not far behind the best."""
    behind = _usual(ran, lambda each: rms(each.errors[:QUALIFYING]))
    best = sorted(behind, key=lambda grid: behind[grid])[:SUIT]
    return {grid for grid in best if behind[grid] <= QUALIFIES * min(behind.values())}


def _usual(ran: Sequence[Measurement], error: Callable[[Measurement], float]) -> dict[str, float]:
    """The error of the best of the usual peers by grid."""
    found: dict[str, float] = {}
    for each in ran:
        if each.solver in USUAL:
            found[each.grid] = min(found.get(each.grid, math.inf), max(error(each), NEGLIGIBLE))
    return found


def _due(solver: str, grid: str, suits: set[str]) -> bool:
    """Whether it runs there."""
    return solver in ANYWHERE or grid in suits


def on_grids(ran: Sequence[Measurement], solver: str) -> dict[str, float]:
    """RMSE by grid, as far as the solver ran on as many samples as anywhere, which are compared.

    Where it ran on the first few alone it is as much above its least as it is there; where it did not run, as much as
    the best of the usual peers is.
    """

    def first(each: Measurement) -> float:
        return max(rms(each.errors[:QUALIFYING]), NEGLIGIBLE)

    own = [each for each in ran if each.solver == solver]
    if not own:
        return {}
    most = max(len(each.errors) for each in own)
    whole = {each.grid: each.rmse for each in own if len(each.errors) == most}
    usual = _usual(ran, first)
    behind = {grid: error / min(usual.values()) for grid, error in usual.items()}
    behind |= {each.grid: first(each) / min(map(first, own)) for each in own}
    return {**{grid: min(whole.values()) * ratio for grid, ratio in behind.items()}, **whole}


def _qualified(ran: Sequence[Measurement]) -> set[tuple[str, str]]:
    """Who is not far behind on the first samples."""
    return _near(QUALIFIES, {(each.solver, each.grid): rms(each.errors[:QUALIFYING]) for each in ran})


def _contenders(ran: Sequence[Measurement]) -> set[tuple[str, str]]:
    """Who is near the best of a heat in any metric but the distance to training images, in which all are near."""
    qualified = _qualified(ran)
    heat = {(each.solver, each.grid): each for each in ran if (each.solver, each.grid) in qualified}
    metrics = [{key: each.rmse for key, each in heat.items()}] + [
        {key: each.distances[to].value for key, each in heat.items()}
        for to in next(iter(heat.values())).distances
        if to != DATA
    ]
    return set().union(*(_near(CONTENDS, metric, CONTENDERS) for metric in metrics))


def _near(factor: float, values: Mapping[tuple[str, str], float], most: int | None = None) -> set[tuple[str, str]]:
    """Ours on its own grid; peers of at most `factor` times the least of all, and published EVODiff and ours on other
    grids of at most that times their own least, as the page shows these; of each the `most` best.
    """
    peers = {key for key in values if key[0] != OURS}
    published = {key for key in peers if key[0] == PUBLISHED}
    ours = set(values) - peers
    return {key for key in ours if key[1] == OWN_GRID} | {
        key
        for among in (peers, published, ours)
        for key in sorted(among, key=lambda key: (values[key], key))[:most]
        if values[key] <= factor * max(min(values[each] for each in among), NEGLIGIBLE)
    }


def trial(
    solver: Solver,
    source: Source,
    folder: Path,
    plan: Plan,
    names: Sequence[str],
    grid: Grid | None = None,
    frechet: bool = False,
) -> Iterator[Cell]:
    """The cells of `names` with `solver` in our place, beside the peers that `folder` holds; nothing is stored of it.

    `benchmarks.quality.ratios.by_rmse` and `by_frechet` say how they compare.
    """
    candidate = Candidate(OURS, solver, OWN_GRID, grid)
    for name in names:
        problem = _cut(PROBLEMS[name].make(name, source), plan)
        results = Results(folder / name, problem.fingerprint)
        targets = _targets(problem, results) if frechet else {}
        for schedule in plan.schedules:
            exact, compared = _references(problem, schedule, results, targets)
            for nfe in plan.budgets:
                wanted = compared if nfe in FRECHET_BUDGETS else {}
                ours = _measured(problem, schedule, candidate, nfe, exact, wanted, FRECHET_RESAMPLES)
                cell = _cell(name, results, plan, ours)
                if cell is None:
                    raise ValueError(f"{folder} lacks peers of {name}, {schedule}, {nfe} calls: fill it first")
                yield cell


def _targets(problem: Problem, results: Results) -> Targets:
    return {name: results.moments(name, make) for name, make in problem.targets.items()}


def _references(problem: Problem, name: str, results: Results, targets: Targets) -> tuple[Tensor, Targets]:
    """The solutions that errors refer to, and the moments that Fréchet distances on this schedule do."""
    seeds = problem.seeds(problem.samples)
    exact = results.solution(name, lambda: problem.solution(SETTINGS[name].schedule, seeds))
    # A network's many samples are worth their price on the schedule that it was trained on only.
    return exact, targets if PROBLEMS[problem.name].group == "exact" or name == "VE" else {}


def cells(folder: Path, plan: Plan) -> list[Cell]:
    """Every cell of the plan that `folder` holds in full, ours and all peers."""
    found = []
    for name in plan.problems:
        if not (folder / name).is_dir():
            continue
        results = Results(folder / name)
        for schedule, nfe in product(plan.schedules, plan.budgets):
            ours = results.get((schedule, nfe, OURS, OWN_GRID))
            if ours is not None and (cell := _cell(name, results, plan, ours)) is not None:
                found.append(cell)
    return found


def finished(folder: Path, plan: Plan) -> list[str]:
    """The problems that `folder` holds every cell of."""
    found = Counter(cell.problem for cell in cells(folder, plan))
    return [name for name in plan.problems if found[name] == len(plan.schedules) * len(plan.budgets)]


def _cell(name: str, results: Results, plan: Plan, ours: Measurement) -> Cell | None:
    """`ours` beside the peers that were measured; None while any is missing, which might be the best."""
    schedule, nfe = ours.schedule, ours.nfe
    heat = _ran(results.heats, schedule, nfe)
    # The statistics of the informed peer are not at hand for every problem.
    peers, suits = {PUBLISHED, *plan.peers} - {INFORMED, f"{INFORMED}{HIGHER_END}"}, _suits(heat)
    entered = ((peer, grid) for peer in peers for grid in _grids(peer, schedule, plan))
    if not {each.key[2:] for each in heat}.issuperset(each for each in entered if _due(*each, suits)):
        return None
    fields = [
        [results.get((schedule, nfe, *each)) for each in sorted(_contenders(ran)) if each[0] != OURS]
        for ran in (heat, former(heat))
    ]
    measured, older = ([peer for peer in field if peer is not None] for field in fields)
    if len(measured) < len(fields[0]) or len(older) < len(fields[1]):
        return None
    elsewhere = [results.get((schedule, nfe, OURS, grid)) for grid in _elsewhere(schedule, plan)]
    return Cell(
        name,
        PROBLEMS[name].group,
        schedule,
        nfe,
        ours,
        [each for each in elsewhere if each is not None],
        measured,
        results.get((schedule, 0, CONVERGED, OWN_GRID)),
        heat,
        older,
    )


def _elsewhere(schedule: str, plan: Plan) -> Mapping[str, Grid]:
    """The other grids of ours, whose own is `focused`."""
    if not plan.elsewhere:
        return {}
    grids = list(SETTINGS[schedule].grids.items())[: plan.grids]
    return {name: grid for name, grid in [*grids, *OURS_ELSEWHERE.items()] if grid is not focused}


def candidates(name: str, plan: Plan, statistics: EMS | None) -> Iterator[Candidate]:
    """Ours and all peers on all grids of a schedule, by its name; the informed peer where there are statistics."""
    yield Candidate(OURS, EVODiff(), OWN_GRID, None)
    for grid_name, grid in _elsewhere(name, plan).items():
        yield Candidate(OURS, EVODiff(), grid_name, grid)
    schedule, grids = SETTINGS[name]
    peers: dict[str, Solver] = {PUBLISHED: EVODiff(mode="published")}
    informed = None if statistics is None else DPMSolverV3(statistics)
    for peer in plan.peers:
        plain = peer.removesuffix(HIGHER_END)
        solver = informed if plain == INFORMED else SOLVERS[plain].suited(isinstance(schedule, Flow))
        if solver is not None:
            peers[peer] = solver if plain == peer else _ending(solver, HIGHER[plain])
    for peer, solver in peers.items():
        for grid_name in _grids(peer, name, plan):
            yield Candidate(peer, solver, grid_name, grids[grid_name])


def _grids(peer: str, schedule: str, plan: Plan) -> Sequence[str]:
    """The names of those that a peer may run on."""
    count = min(plan.grids, USUAL_GRIDS) if peer.endswith(HIGHER_END) else plan.grids
    return list(SETTINGS[schedule].grids)[:count]


def _ending(solver: Any, final_order: int) -> Solver:
    found: Solver = dataclasses.replace(solver, final_order=final_order)
    return found


def _measured(
    problem: Problem,
    name: str,
    candidate: Candidate,
    nfe: int,
    exact: Tensor,
    targets: Targets,
    resampled: int,
) -> Measurement:
    schedule = SETTINGS[name].schedule
    images = torch.cat(
        [
            problem.drawn(schedule, part, candidate.solver, nfe, candidate.grid)
            for part in batches(problem.seeds(problem.many if targets else len(exact)))
        ]
    )
    first = images[: len(exact)]
    agrees = [] if problem.nearest is None else (problem.nearest(first) == problem.nearest(exact)).tolist()
    distances = _distances(problem, images, targets, resampled)
    errors, slopes = (_rounded(metric(first, exact)) for metric in (rmses, gains))
    return Measurement(name, nfe, candidate.name, candidate.grid_name, errors, slopes, agrees, distances)


def _distances(problem: Problem, images: Tensor, targets: Targets, resampled: int) -> dict[str, Distance]:
    if not targets:
        return {}
    features = problem.features(images)
    drawn = [Moments.of(features[rows]) for rows in resamples(len(features), resampled)]
    return {
        name: Distance(
            frechet_distance(target, Moments.of(features)),
            len(features),
            _rounded(torch.tensor([frechet_distance(target, each) for each in drawn], dtype=torch.float64)),
        )
        for name, target in targets.items()
    }


def _rounded(values: Tensor) -> list[float]:
    """Seven digits, of sixteen that say nothing."""
    return [float(f"{value:.7g}") for value in values.tolist()]


def _cut(problem: Problem, plan: Plan) -> Problem:
    return dataclasses.replace(problem, samples=math.ceil(problem.samples / plan.share))


def statistics_of(problem: Problem, results: Results) -> EMS | None:
    """Those of DPM-Solver-v3, kept beside the results; None without images.

    They are estimated once, on the flow, whose log-SNRs include the other schedules'.
    """
    if problem.images is None:
        return None
    path = results.folder / f"ems{results.tag}.safetensors"
    if not path.exists():
        schedule = SETTINGS["flow"].schedule
        denoiser = problem.denoiser(schedule, ())  # of no class: of all batches
        images = problem.images.to(problem.dtype)
        estimate_ems(denoiser, schedule, images, points=POINTS, samples=STATISTICS_SAMPLES).save(path)
    # A function of log-SNR and x / alpha, which mean the same on all of them.
    return dataclasses.replace(EMS.load(path), schedule=None)
