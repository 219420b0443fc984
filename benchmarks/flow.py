"""The page docs/flow.md: the samplers that users of flow models choose from, on the grid that they leave them at.

    python -m benchmarks.flow --data cifar10.npz --out docs/flow.md

Measurements are kept in benchmarks/records/flow, so that an interrupted run goes on, and more `--images` add to them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from torch import Tensor

from fewstep.adapters import load_model
from fewstep.bench.markdown import table
from fewstep.bench.metrics import Moments, frechet_distance, rmses
from fewstep.cli.parse import pick
from fewstep.grid import Grid, simple
from fewstep.models import CIFAR10
from fewstep.sampling import sample
from fewstep.schedule import Flow
from fewstep.solvers import DDIM, ERSDE, RES, EVODiff, GradientEstimation, Solver, UniPC

from .command import Data, Out, say, source, write
from .problems import PROBLEMS, SPLITS, Problem, Source
from .problems.base import batches
from .problems.suite import network
from .quality.results import Distance, Key, Measurement, Results

__all__ = ["CALLS", "MADE", "SAMPLERS", "SHIFTS", "distances", "errors", "fill", "page"]


class Sampler(NamedTuple):
    """A solver on a grid; `draws` noise on the way, so that a distance to the ODE's solution says nothing of it."""

    solver: Solver
    grid: Grid | None = simple
    draws: bool = False


OURS = "EVODiff(), its own grid"
SAMPLERS: Mapping[str, Sampler] = {
    OURS: Sampler(EVODiff(), None),
    "EVODiff(), simple": Sampler(EVODiff()),
    "euler": Sampler(DDIM()),
    "res_multistep": Sampler(RES(clock="sigma")),
    "uni_pc": Sampler(UniPC(3, "bh1")),
    "er_sde": Sampler(ERSDE(), draws=True),
    "gradient_estimation": Sampler(GradientEstimation(field="velocity")),
}
SOLUTION = "the solutions"
SHIFTS = (1.0, 3.0, 5.0, 7.0)
CALLS = (4, 6, 8, 10, 12, 20)
# The network at two guidance scales; "mixture" has no network in it.
MADE: Mapping[str, Callable[[str, Source], Problem]] = {
    "mixture": PROBLEMS["mixture"].make,
    "guided-1": partial(network, guidance=1.0),
    "guided-4": partial(network, guidance=4.0),
}
RECORDS = Path(__file__).parent / "records" / "flow"
BLOCK = 4  # images that are measured together: a folder of records each
IMAGES, MANY = 4, 1024
SETS_SHIFT = 3.0  # where distances between sets are measured: SD3's


def fill(problem: Problem, folder: Path, images: int, many: int, say: Callable[[str], object]) -> None:
    """Measure what `folder` does not hold yet: errors on `images` samples, and distances of `many` to a known law."""
    for block, results in _blocks(problem, folder, images):
        # All shifts have one ODE, from pure noise to none: they share their solution.
        exact = results.solution("flow", lambda block=block: problem.solution(Flow(), block))  # type: ignore[misc]
        for key, shift, sampler, calls in _cells(SHIFTS):
            if not (sampler.draws or results.holds(key, (), 0)):
                say(f"{problem.name}, {block.start} to {block.stop - 1}: {key[2]}, {key[0]}, {calls} calls")
                found = rmses(_drawn(problem, shift, sampler, block, calls), exact)
                results.add(Measurement(*key, _rounded(found), [], [], {}))
    if "exact" not in problem.targets:
        return
    target, results, seeds = problem.targets["exact"](), _sets(problem, folder), problem.seeds(many)

    def add(key: Key, images: Callable[[range], Tensor]) -> None:
        if not results.holds(key, ("exact",), many):
            say(f"{problem.name}, {many} samples: {key[2]}, {key[0]}, {key[1]} calls")
            moments = Moments.of(problem.features(torch.cat([images(part) for part in batches(seeds)])))
            distance = Distance(frechet_distance(target, moments), many, [])
            results.add(Measurement(*key, [], [], [], {"exact": distance}))

    add(_key(SETS_SHIFT, SOLUTION, 0), partial(problem.solution, Flow()))
    for key, shift, sampler, calls in _cells((SETS_SHIFT,)):
        add(key, partial(_drawn, problem, shift, sampler, calls=calls))


def errors(problem: Problem, folder: Path, images: int) -> dict[tuple[float, str], Tensor]:
    """The RMSE of each sample, (calls, images), by shift and sampler, of those that draw no noise."""
    found: dict[tuple[float, str], list[Tensor]] = {}
    for _, results in _blocks(problem, folder, images):
        for shift in SHIFTS:
            for name, sampler in SAMPLERS.items():
                if not sampler.draws:
                    cells = [results.get(_key(shift, name, calls)) for calls in CALLS]
                    rows = torch.tensor([each.errors for each in cells if each], dtype=torch.float64)
                    found.setdefault((shift, name), []).append(rows)
    return {key: torch.cat(parts, 1) for key, parts in found.items()}


def distances(problem: Problem, folder: Path) -> dict[str, list[float]]:
    """The Fréchet distances to the problem's law, by sampler, for each number of calls; of the solutions, one."""
    results = _sets(problem, folder)

    def value(name: str, calls: int) -> float:
        found = results.get(_key(SETS_SHIFT, name, calls))
        if found is None:
            raise ValueError(f"{results.folder} lacks {name} at {calls} calls: fill it first")
        return found.distances["exact"].value

    return {SOLUTION: [value(SOLUTION, 0)], **{name: [value(name, calls) for calls in CALLS] for name in SAMPLERS}}


def page(problems: Sequence[Problem], folder: Path, images: int, many: int) -> str:
    """The page as Markdown, of what `folder` holds."""
    parts = [INTRODUCTION.format(images=images)]
    found = {problem.name: errors(problem, folder, images) for problem in problems}
    ratios = {
        name: {key: _mean_ratio(row, each[key[0], OURS]) for key, row in each.items() if key[1] != OURS}
        for name, each in found.items()
    }
    for name, cells in ratios.items():
        rows = [
            [sampler, *(_pair(*cells[shift, sampler]) for shift in SHIFTS)]
            for sampler in dict.fromkeys(sampler for _, sampler in cells)
        ]
        parts += [f"## {name}\n", table(["error, of ours", *(f"shift {shift:g}" for shift in SHIFTS)], rows)]
    parts.append(_reading(ratios))
    for problem in problems:
        if "exact" in problem.targets:
            parts.append(SETS.format(name=problem.name, many=many, shift=SETS_SHIFT))
            rows = [
                [name, *(f"{value:.4f}" for value in row), *[""] * (len(CALLS) - len(row))]
                for name, row in distances(problem, folder).items()
            ]
            parts.append(table(["Fréchet distance", *map(str, CALLS)], rows))
    for name, each in found.items():
        parts.append(f"## All errors: {name}\n")
        for shift in SHIFTS:
            rows = [
                [sampler, *(_pair(*_root(row)) for row in cells)]
                for (at, sampler), cells in each.items()
                if at == shift
            ]
            parts.append(table([f"shift {shift:g}", *map(str, CALLS)], rows))
    return "\n".join(parts)


def _reading(ratios: Mapping[str, Mapping[tuple[float, str], tuple[float, float]]]) -> str:
    """What the first tables say, of the samplers on `simple`."""
    least = {
        (name, shift): min((value, sampler) for (at, sampler), (value, _) in cells.items() if at == shift)
        for name, cells in ratios.items()
        for shift in SHIFTS
    }
    lines = [
        f"- *{name}*: {'; '.join(f'shift {shift:g}, {least[name, shift][1]}' for shift in SHIFTS)}" for name in ratios
    ]
    values = [value for value, _ in least.values()]
    return READING.format(low=min(values), high=max(values), least="\n".join(lines))


def _blocks(problem: Problem, folder: Path, images: int) -> Iterator[tuple[range, Results]]:
    seeds = problem.seeds(images)
    for first in range(0, images, BLOCK):
        block = seeds[first : first + BLOCK]
        yield block, Results(folder / problem.name / f"{block.start}-{block.stop - 1}", problem.fingerprint)


def _sets(problem: Problem, folder: Path) -> Results:
    return Results(folder / problem.name / f"sets-{problem.first_seed}", problem.fingerprint)


def _cells(shifts: Sequence[float]) -> Iterator[tuple[Key, float, Sampler, int]]:
    for shift in shifts:
        for name, sampler in SAMPLERS.items():
            for calls in CALLS:
                yield _key(shift, name, calls), shift, sampler, calls


def _key(shift: float, name: str, calls: int) -> Key:
    return f"shift {shift:g}", calls, name, "own" if name == OURS else "simple"


def _drawn(problem: Problem, shift: float, sampler: Sampler, seeds: Sequence[int], calls: int) -> Tensor:
    schedule = Flow(shift)
    return sample(
        problem.denoiser(schedule, seeds),
        problem.noise(seeds),
        nfe=calls,
        solver=sampler.solver,
        schedule=schedule,
        grid=sampler.grid,
        seeds=seeds,
    )


def _root(errors: Tensor) -> tuple[float, float]:
    """The root of the mean square of errors (N,), and its standard error, to first order in that of the mean."""
    squares = errors.square()
    value = squares.mean().sqrt().item()
    return value, (squares.std() / len(squares) ** 0.5 / (2 * value)).item()


def _mean_ratio(theirs: Tensor, ours: Tensor) -> tuple[float, float]:
    """The geometric mean over calls of the RMSE's ratio, both (calls, N), and its standard error, by the jackknife."""

    def ratio(keep: Tensor) -> Tensor:
        return (theirs[:, keep].square().mean(1) / ours[:, keep].square().mean(1)).log().mean().div(2).exp()

    n = theirs.shape[1]
    every = torch.arange(n)
    without = torch.stack([ratio(every[every != i]) for i in range(n)])
    return ratio(every).item(), ((n - 1) * without.var(unbiased=False)).sqrt().item()


def _pair(value: float, error: float) -> str:
    return f"{value:.3g} ± {error:.1g}"


def _rounded(values: Tensor) -> list[float]:
    return [float(f"{value:.7g}") for value in values.tolist()]


INTRODUCTION = """# Samplers of flow models, as users have them

For people with a flow model (Flux, SD3, Wan) who keep their front end's noise levels. You get what each sampler
leaves there, by shift, guidance and the number of calls.

Every figure was measured by `make flow`, which writes this page and goes on where it was interrupted. A flow at the
shifts that well-known models have; the samplers that ComfyUI's templates set, in this library's own form of them, each
on the grid "simple", which the templates set, too; EVODiff's default there and on its own grid. Euler is DDIM; uni_pc
is UniPC-3 with its first variant, without the omission of a level that a front end may make. *guided-1* and *guided-4*
are the packaged network at that guidance, *mixture* five Gaussians of images of half its size, whose denoiser is exact.

The first tables say how many times the error of EVODiff() on its own grid each sampler leaves, in geometric mean over
all numbers of calls. The error is the RMSE per pixel to the ODE's solution from the same noise, of {images} images; all
are [below](#all-errors-mixture). ± is one standard error, of the draw of images. A sampler that draws noise on the way,
er_sde, does not tend to that solution, and has no error; what can be said of it is a distance between sets of samples.
"""
READING = """## What it says

Most of the error is the grid's. The best sampler on "simple" leaves {low:.1f} to {high:.1f} times the error of
`EVODiff()` on its own grid, most at the largest shift, since the last step of "simple" to the image grows with it.
EVODiff's own grid is made in log-SNR, and has no use for a shift: its errors are the same at all of them. Whoever can
change one thing, the sampler or the scheduler, changes the scheduler. Of those who stay on "simple" this had the least
error; the standard errors above say whether by more than the draw of images:

{least}
"""
SETS = """## Sets of samples: {name}, shift {shift:g}

The Fréchet distance of {many} samples to the mixture itself, whose moments are known, in means over 8 × 8 squares of
pixels, by calls. That of the solutions is what so many samples of the right distribution have; er_sde, which draws
other noise, may have less by chance.
"""


def main(
    data: Data = CIFAR10,
    problem: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(MADE)}; may be repeated.")] = None,
    split: Annotated[str, typer.Option(help="dev, to develop solvers on, or report.")] = "report",
    images: Annotated[int, typer.Option(help="Of the distances to solutions; two or more.", min=2)] = IMAGES,
    many: Annotated[int, typer.Option(help="Samples of a Fréchet distance.", min=2)] = MANY,
    results: Annotated[Path, typer.Option(help="Where measurements are kept.")] = RECORDS,
    out: Out = None,
) -> None:
    """Measure what users of flow models choose from, on the grid that they leave it at."""
    pick("--split", SPLITS, split)
    for name in problem or []:
        pick("--problem", MADE, name)

    def measured() -> str:
        # An evaluation of the network takes as long for fewer images as for its whole batch.
        made = dataclasses.replace(source(data, split), load_model=partial(load_model, batch=BLOCK))
        problems = [MADE[name](name, made) for name in problem or MADE]
        for each in problems:
            fill(each, results, images, many, say)
        return page(problems, results, images, many)

    write(out, measured)


if __name__ == "__main__":
    typer.run(main)
