"""The page docs/tune.md: how to tune a model, what it costs, and what it gains on models of many kinds.

    python -m benchmarks.tune --kinds networks,trees --data cifar10.npz --out docs/tune.md

Plans and distances between sets are kept in benchmarks/records/tune: what is there is not measured again. They do not
know the code of the default: after it changes, remove the plans that it should be tuned for anew, and its distances.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from torch import Tensor

from fewstep.adapters import EDMModel
from fewstep.bench.markdown import table
from fewstep.bench.metrics import Moments, frechet_distance, rmse
from fewstep.cheaper import winograd
from fewstep.models import CIFAR10
from fewstep.prediction import Denoiser, as_denoiser
from fewstep.sampling import sample, unit_noise
from fewstep.schedule import Schedule
from fewstep.solvers import EVODiff, Solver, Tuned
from fewstep.tuning import MOST, tune

from .command import Out, packaged, say, source, write
from .problems import PROBLEMS as PACKAGED
from .problems import SPLITS, Source
from .problems.base import batches, ends, solved
from .problems.network import Reclocked
from .problems.suite import OWN as OWN_SAMPLES
from .problems.suite import OWN_IMAGES
from .quality.results import Measurement, Results
from .quality.run import FULL, SETTINGS, candidates, former, statistics_of
from .stress.measure import FOLDER, Bench, Kept
from .stress.peers import PEERS
from .stress.problems import NETWORK_SAMPLES as GALAXY_SAMPLES
from .stress.problems import OWN, SAMPLES, TREE_SAMPLES, Problem, problems
from .stress.ratios import over_best
from .stress.trees import Trees

__all__ = ["NETWORK_CELLS", "PROBLEMS", "Gain", "others", "packaged_network", "page"]

CALLS = (5, 8, 10, 15)
# Of the stress bench, split "report": nothing like images, and each sample of the same law.
PROBLEMS: Mapping[str, tuple[str, ...]] = {
    "mixtures, 1 to 48 dimensions": ("1 dimensions", "2 dimensions", "4 dimensions", "unconditional"),
    "heavy tails": ("t, common scale", "t, coordinates"),
    "a spectrum, 0.01 to 3": ("scales 0.01 to 3",),
    "lattices": ("lattice, 2d", "lattice, 3d"),
    "posteriors": ("posterior, 0.3", "posterior, 3"),
}
KINDS = {"networks": "networks of galaxies", "trees": "boosted trees"}
PLANS = Path(__file__).parent / "records" / "tune"
FIRST_SEED = 500_000  # of the samples that are tuned on, those of the bench left alone
GUIDANCES = (None, 1.5, 4.0, 7.5)
NETWORK_CALLS = (5, 6, 8, 10, 12)
NETWORK_CELLS = {
    f"{schedule}-{'none' if guidance is None else f'{guidance:g}'}": (guidance, schedule)
    for schedule, guidance in product(SETTINGS, GUIDANCES)
}
SETS_CALLS, SETS_SAMPLES = (5, 6, 8), 2048
NEAREST = 3  # recorded peers that run on so many
NETWORK_SAMPLES, NETWORK_STEPS = 16, 128  # of the records of docs/quality.md
RECORDS = Path(__file__).parent / "quality" / "records" / "report-full"


class Effort(NamedTuple):
    """What a budget may cost: seeds, half of them to tune on, evaluations of a sample, and samples at a time."""

    seeds: int
    most: int
    batch: int


USUAL = Effort(32, MOST, 8)
LARGE = Effort(4_096, 4_000_000, 128)  # for what answers a thousand samples in a millisecond


class Gain(NamedTuple):
    """Errors of a cell: the default's, the tuned plan's, and those of the best peer at its best levels."""

    group: str
    calls: int
    default: float
    tuned: float
    peer: float


def page(
    folder: Path, plans: Path, cells: Sequence[str], calls: Sequence[int], kinds: Sequence[str], data: str | None
) -> str:
    """The page as Markdown. Plans are kept in `plans`, what is measured of peers in `folder`."""
    parts = [INTRODUCTION.format(most=USUAL.most, seeds=USUAL.seeds)]
    if cells:
        model = winograd(packaged())
        found = [gain for cell in cells for gain in packaged_network(model, *NETWORK_CELLS[cell], calls, plans)]
        parts += [NETWORK.format(samples=NETWORK_SAMPLES), _means(found), "", _cells(found)]
    if data is not None:
        parts += [
            SETS.format(samples=SETS_SAMPLES, own=OWN_IMAGES, nearest=NEAREST),
            sets(source(data, "report"), plans),
        ]
    found = list(others(folder, plans, kinds))
    sizes = {"samples": SAMPLES, "trees": TREE_SAMPLES, "networks": GALAXY_SAMPLES}
    parts += [OTHERS.format(peers=len(PEERS), **sizes), _means(found), "", _by_calls(found)]
    found = list(others(folder, folder / "tuned", [kind for kind in kinds if kind == "trees"], LARGE))
    parts += [MORE.format(samples=SAMPLES, **LARGE._asdict()), _means(found), "", _by_calls(found)]
    parts.append(READING if data is not None else READING + UNMEASURED)
    return "\n".join(parts)


def sets(made: Source, plans: Path) -> str:
    """Fréchet distances to the packaged network's own samples, of plans for the error and for features.

    The peers are those of docs/quality.md, the nearest by the distance that is recorded there, of fewer samples; the
    features are the packaged classifier's.
    """
    folder, schedule = plans / "sets", SETTINGS["VE"].schedule
    problem = replace(PACKAGED["model"].make("model", made), many=SETS_SAMPLES)
    results, kept = Results(folder, problem.fingerprint), Kept(folder / "distances.jsonl")
    denoiser = problem.denoiser(schedule, ())
    of = partial(_tuned, lambda seeds: denoiser, schedule, problem.shape)
    tuned = {
        "error": of(NETWORK_CALLS, plans / "model-VE.json", problem.dtype),
        "features": of(SETS_CALLS, plans / "model-VE-features.json", problem.dtype, problem.features),
    }
    solvers: dict[str, Solver] = {"default": EVODiff(), **{f"tuned for the {name}": tuned[name] for name in tuned}}
    peers = [each for each in _peers("model", "VE") if each.distances]

    # Both take minutes, and none where all distances are kept.
    target = cache(lambda: results.moments(OWN_SAMPLES, problem.targets[OWN_SAMPLES]))
    field = cache(
        lambda: {(each.name, each.grid_name): each for each in candidates("VE", FULL, statistics_of(problem, results))}
    )

    def distance(name: str, calls: int, drawn: Callable[[Sequence[int]], Tensor]) -> float:
        def found() -> float:
            images = torch.cat([drawn(part) for part in batches(problem.seeds(problem.many))])
            return frechet_distance(target(), Moments.of(problem.features(images)))

        return kept.once((name, str(calls)), found)

    def ours(name: str, calls: int) -> float:
        return distance(name, calls, lambda part: problem.drawn(schedule, part, solvers[name], calls, None))

    def theirs(key: tuple[str, str], calls: int) -> float:
        def drawn(part: Sequence[int]) -> Tensor:
            peer = field()[key]
            return problem.drawn(schedule, part, peer.solver, calls, peer.grid)

        return distance(" on ".join(key), calls, drawn)

    rows = []
    for calls in SETS_CALLS:
        say(f"distances, {calls} calls ...")
        recorded = {(each.solver, each.grid): each.distances[OWN_SAMPLES].value for each in peers if each.nfe == calls}
        peer = min(theirs(key, calls) for key in sorted(recorded, key=lambda key: recorded[key])[:NEAREST])
        own = [ours(name, calls) for name in solvers]
        rows.append([str(calls), *(f"{each:.3f}" for each in (*own, peer)), *(f"{each / peer:.2f}" for each in own)])
    return table(["calls", *solvers, "best peer", *(f"{name}, over it" for name in solvers)], rows)


def _peers(name: str, schedule_name: str) -> list[Measurement]:
    """All but EVODiff's, as recorded for docs/quality.md."""
    lines = (RECORDS / name / "results.jsonl").read_text(encoding="utf-8").splitlines()
    found = (each for each in map(Measurement.read, lines) if each.schedule == schedule_name)
    return [each for each in found if not each.solver.startswith("evodiff")]


def others(folder: Path, plans: Path, kinds: Sequence[str], effort: Effort = USUAL) -> Iterator[Gain]:
    """Of models that are nothing like images, one a problem, schedule and number of calls."""
    groups = dict(PROBLEMS)
    exact = problems("exact", "report", folder)
    chosen = {name: exact[name] for names in groups.values() for name in names}
    for kind in kinds:
        trained = problems(kind, "report", folder)
        chosen |= trained
        groups[KINDS[kind]] = tuple(trained)
    of = {name: group for group, names in groups.items() for name in names}
    for name, problem in chosen.items():
        for schedule_name, schedule in problem.schedules.items():
            say(f"{name}, {schedule_name} ...")
            yield from _gains(of[name], problem, schedule_name, schedule, folder, plans, effort)


def _gains(
    group: str, problem: Problem, schedule_name: str, schedule: Schedule, folder: Path, plans: Path, effort: Effort
) -> Iterator[Gain]:
    one = replace(problem, schedules={schedule_name: schedule}, calls=CALLS)
    bench = Bench({problem.name: one}, folder)

    def of(seeds: Sequence[int]) -> Denoiser:
        law = problem.law.of(seeds) if isinstance(problem.law, Trees) else problem.law
        return as_denoiser(lambda x, t: law.denoised(x, schedule.node(t)), "sample", schedule)

    dtype = torch.float32 if problem.pretrained else torch.float64
    name = "-".join("".join(c if c.isalnum() else "_" for c in part) for part in (problem.name, schedule_name))
    tuned = _tuned(of, schedule, problem.shape, CALLS, plans / f"{name}.json", dtype, effort=effort)
    peers = bench.peers(EVODiff())
    errors = {"default": bench.errors(EVODiff(), levels=(OWN,)), "tuned": bench.errors(tuned, levels=(OWN,))}
    ratios = {each: over_best(found, peers) for each, found in errors.items()}
    for cell in errors["default"]:
        default, ours = (ratios[each][cell] for each in ("default", "tuned"))
        yield Gain(group, cell.calls, default, ours, 1.0)


def packaged_network(
    model: EDMModel, guidance: float | None, schedule_name: str, budgets: Sequence[int], plans: Path
) -> list[Gain]:
    """Of the packaged network under noise of a schedule, on the samples of docs/quality.md."""
    schedule, classes = SETTINGS[schedule_name].schedule, SPLITS["report"].classes
    name = "model" if guidance is None else f"guided-{guidance:g}"
    say(f"{name}, {schedule_name} ...")

    def of(seeds: Sequence[int]) -> Denoiser:
        chosen = model if guidance is None else model.conditioned([classes[s % len(classes)] for s in seeds], guidance)
        law = Reclocked(chosen, model.schedule)
        return as_denoiser(lambda x, t: law.denoised(x, schedule.node(t)), "sample", schedule)

    tuned = _tuned(of, schedule, model.shape, budgets, plans / f"{name}-{schedule_name}.json", torch.float32)
    first = SPLITS["report"].first_seed
    seeds = range(first, first + NETWORK_SAMPLES)
    noise, denoiser = unit_noise(seeds, model.shape), of(seeds)
    start, end = ends(schedule)
    exact = _once(
        plans / f"{name}-{schedule_name}-solution.pt",
        lambda: solved(denoiser, schedule, noise * start.sigma, start, end, NETWORK_STEPS),
    )
    peers = [each for each in former(_peers(name, schedule_name)) if each.errors]

    def error(solver: Solver, calls: int) -> float:
        return rmse(sample(denoiser, noise, nfe=calls, solver=solver, schedule=schedule), exact)

    return [
        Gain(
            f"{schedule_name}, {'no guidance' if guidance is None else f'guidance {guidance:g}'}",
            calls,
            error(EVODiff(), calls),
            error(tuned, calls),
            min(each.rmse for each in peers if each.nfe == calls),
        )
        for calls in budgets
    ]


def _tuned(
    of: Callable[[list[int]], Denoiser],
    schedule: Schedule,
    shape: Sequence[int],
    calls: Sequence[int],
    path: Path,
    dtype: torch.dtype,
    objective: Any = "rmse",
    effort: Effort = USUAL,
) -> Tuned:
    """The plan in the file, made if it is not there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of references that are not exact to a thousandth
            tune(
                of, schedule, by_seed=True, shape=shape, nfe=calls, seeds=range(FIRST_SEED, FIRST_SEED + effort.seeds),
                dtype=dtype, fingerprint=path.stem, out=path, objective=objective, most=effort.most, batch=effort.batch,
            )  # fmt: skip
        say(f"tuned in {time.perf_counter() - started:.0f} s")
    return Tuned.load(path, schedule=schedule)


def _once(path: Path, make: Callable[[], Tensor]) -> Tensor:
    if not path.exists():
        torch.save(make(), path)
    found: Tensor = torch.load(path, weights_only=True)
    return found


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.geometric_mean(values):.2f}"


def _row(name: str, gains: Sequence[Gain]) -> list[str]:
    over = [each.tuned / each.peer for each in gains]
    return [
        name,
        str(len(gains)),
        _mean([each.tuned / each.default for each in gains]),
        _mean([each.default / each.peer for each in gains]),
        _mean(over),
        f"{max(over):.2f}",
    ]


HEAD = ["", "cells", "tuned over default", "default over best peer", "tuned over best peer", "its worst"]


def _means(gains: Sequence[Gain]) -> str:
    groups = dict.fromkeys(each.group for each in gains)
    rows = [_row(group, [each for each in gains if each.group == group]) for group in groups]
    return table(HEAD, [_row("all", gains), *rows])


def _by_calls(gains: Sequence[Gain]) -> str:
    budgets = sorted({each.calls for each in gains})
    return table(HEAD, [_row(f"{calls} calls", [each for each in gains if each.calls == calls]) for calls in budgets])


def _cells(gains: Sequence[Gain]) -> str:
    rows = [
        [each.group, str(each.calls), *(f"{error:.4f}" for error in (each.default, each.tuned, each.peer))]
        + [f"{each.tuned / error:.2f}" for error in (each.default, each.peer)]
        for each in gains
    ]
    return table(["", "calls", "default", "tuned", "best peer", "over default", "over best peer"], rows)


INTRODUCTION = """# Tune your model

For people with one model, one guidance scale and some minutes. You get a plan that was measured on that model: its
noise levels, what the model is told at them, its weights, and in numbers what it gained on seeds that it was not tuned
on. If the model changes often, take the default.

`EVODiff()` plans with a fixed prior, that of images in [-1, 1]. `fewstep tune` measures on your model instead where the
nodes (noise levels) should be, what level the model is best told there, and how the answers are weighed, for each
number of calls, with your guidance. Nothing is trained and no data are needed. This page is written by
`python -m benchmarks.tune`.

    fewstep tune --model FOLDER --guidance 4 --nfe 5,8,10 --out plan.json
    fewstep sample --model FOLDER --guidance 4 --nfe 8 --solver tuned --plan plan.json

In Python, for any denoiser:

    tuned = fewstep.tune(denoiser, schedule, shape=(3, 32, 32), nfe=(5, 8, 10), out="plan.json", fingerprint="my model")
    x = fewstep.sample(denoiser, noise, nfe=8, solver=tuned)      # or solver=fewstep.Tuned.load("plan.json")
    pipe.scheduler = EVODiffScheduler.from_config(pipe.scheduler.config, tuned="plan.json")
    x = sampler(tuned)(model, x, get_sigmas_tuned(tuned, 8, schedule))                        # as k-diffusion calls it

## What it costs

At most {most:,} evaluations of a single sample for each number of calls, 63 for each seed for the reference ({seeds}
seeds unless told otherwise), and two runs of the held-out half for the report. `fewstep tune` says the sum before it
begins; with guidance each is two of the network. What was measured is kept: after an interruption the same command
goes on, and a finished plan is read. Another file in its place is refused, or replaced when the plan is done, with
`--overwrite` (in Python `overwrite=True`). The memory is that of one batch. A step of a tuned plan costs what the
default's costs. Where a call costs next to nothing, as of small networks or trees for a few numbers, give far more
seeds and evaluations: what they gain is below.

For the packaged network `fewstep tune --guidance 4 --nfe 5,6,8,10,12` takes 248 seconds on two cores, and 349 MB in
all.

## What it says

The plan is tuned on half of the seeds. On the other half the report has the error of the default, that of the tuned
plan, and a 95 % interval of their ratio over seeds. Where nothing was gained the file says so, and the default runs. A
number of calls that was not tuned is planned with the numbers of the nearest one. The file is JSON, numbers and words;
it is refused on another schedule, and for another model or guidance there is a warning. The plan of all classes serves
each of them; that of one class is warned of for another.

## How it is done

First the numbers behind the default are varied together: those of its grid, its prior and its trust. Then each node,
each weight and the noise level that the model is told in each call are varied by themselves, with a pull towards the
plan of the first search: `tuning.py` has the equations. A step keeps the weight of x and the sum of the weights, as
DDIM has them, and how far each sample is trusted is measured while it runs, as in
[least-variance.md](least-variance.md).

What the model is told is most of the gain where there is no guidance: on development seeds of the packaged network, VE,
5 calls, the error is 0.69 of the default's with it and 0.82 without. x was predicted, so that its noise is not quite
that of its level, and no network is a posterior mean: it is best told a level a few hundredths off in half log-SNR,
mostly a cleaner one. LD3 (Tong et al., 2025) tells its networks other times, too, found by gradients through them. No
single shift suits all budgets: 0.02 more in each call of the default takes a sixth off that error in 5 calls, and makes
it five times as large in 12.

x / α and the noise in it stay as they are; α is that of the level that is told. So a plan serves the same model in
every form: `sample`, k-diffusion and ComfyUI, and diffusers, whose `timesteps` and `sigmas` are then what the model is
told. A part of a run and levels of your own are planned as other numbers of calls are; a run that begins in the middle
of a pipeline's timesteps goes on being told them. Noise on the way (`Stochastic`, `eta`) and whole timesteps alone
(`timestep_type="integer"`) are refused.

What was tried and is not in it:

- **Rows without trust**: linear steps, all weights free. As good without guidance; at guidance 7.5 the search begins
  at one and a half times the default's error and does not come below the default's.
- **Planning from measured second moments** of what the denoiser says along the path, by bands of frequency, in place of
  the prior, with the conditional variance as the response to an error. It foretells the default's error on the network
  to 1 % for 5 calls, to 30 % for 8. But the plan that is best by it has 2.8 times the default's error in 5 calls: an
  answer off the path is more than that on it and a part of the error.
- **Squares of errors** in place of their sizes: a few samples between two outcomes decide everything. Of 20 plans for
  mixtures 5 were worse than the default on held-out seeds, and one of the others 7 times worse on 256 more. Of sizes
  these were 1, and 1.6 times. With many seeds it is the other way round: of 256, 512, 1,024 and 2,048 squares left
  1.05, 0.94, 0.97 and 0.89 of what sizes did, on development problems. From 512 on squares are tuned for.
- **Another solver as the plan**, of eight on two grids the best by the seeds that are tuned on, where it leaves less
  than what was tuned. Of models that are nothing like images, development problems went from 0.68 to 0.65 of the best
  peer's error, those of the report from 0.75 to 0.78: where few samples decide, 16 do not tell which solver is best.
"""
NETWORK = """
## The packaged network

RMSE to the converged solution, {samples} images of the report split of [quality.md](quality.md), tuned on other seeds.
"Best peer" is the best of 9 solvers on the best of three grids, chosen in each cell afterwards: the field of 2023, as
recorded there.
"""
SETS = """
## Distances between sets

The Fréchet distance of {samples} samples of the packaged network on VE to {own} of its converged solutions, in the
packaged classifier's features. One plan is tuned for the error, one for the error of these features: `objective=` a
function of the images. "Best peer" is the best solver on its best grid by this distance: the {nearest} nearest of those
recorded in [quality.md](quality.md), which are of fewer samples, ran on as many here.
"""
OTHERS = """
## Models that are nothing like images

Exact denoisers, networks of galaxies and boosted trees, of the report split of [stress.md](stress.md), each on its
schedules. "Best peer" is the best of {peers} solvers at the best levels, chosen in each cell afterwards. The error is
over {samples:,} samples, {trees} for trees, {networks} for networks; the geometric mean is over cells. Few samples of a
mixture end between two components, and they are most of the error of their cell.
"""
MORE = """
## The same, with more seeds

For models whose answers cost next to nothing: `tune(..., seeds=range({seeds:_}), most={most:_}, batch={batch})`, which
takes about a minute for the four budgets here. So many seeds show the few samples that end between two outcomes, and
what they are tuned for is the mean square. What is above 1 is of mixtures in 15 calls, where a handful of the
{samples:,} samples are half of the mean square or more, and of trees.
"""
READING = f"""
## When it does not pay

- Above 15 calls there is little to gain, and what is gained is near the error of the reference, of which there is a
  warning.
- Where samples are decided by a hair, as between the components of a mixture or the points of a lattice, {USUAL.seeds}
  seeds see too few such samples, and what was gained on the usual ones may be lost on them: give more, as in the last
  tables, or keep the default.
- A plan for one guidance says nothing of another.
"""


UNMEASURED = """\
- The error is that of single samples. What it does to distances between sets was not measured, nor was the objective
  "details", which counts how sharp they are.
"""


def main(
    folder: Annotated[Path, typer.Option(help="Where converged solutions and errors of peers are kept.")] = FOLDER,
    plans: Annotated[Path, typer.Option(help="Where plans are kept.")] = PLANS,
    cells: Annotated[str, typer.Option(help=f"Of {', '.join(NETWORK_CELLS)}; '' for none.")] = ",".join(NETWORK_CELLS),
    calls: Annotated[str, typer.Option(help="Of the packaged network.")] = ",".join(map(str, NETWORK_CALLS)),
    kinds: Annotated[
        str, typer.Option(help="Networks, which are downloaded, and trees, which need treeffuser; '' for neither.")
    ] = "networks",
    data: Annotated[str | None, typer.Option(help=f"Distances between sets too; an npz file or {CIFAR10}.")] = None,
    out: Out = None,
) -> None:
    """Measure what tuning gains, and write docs/tune.md."""
    chosen = [cell for cell in cells.split(",") if cell]
    of = [kind for kind in kinds.split(",") if kind]
    write(out, lambda: page(folder, plans, chosen, list(map(int, calls.split(","))), of, data))


if __name__ == "__main__":
    typer.run(main)
