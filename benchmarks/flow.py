"""The page docs/flow.md: the samplers that users of flow models choose from, on the grid that they leave them at.

python -m benchmarks.flow --data cifar10.npz --out docs/flow.md
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, NamedTuple

import torch
import typer
from torch import Tensor

from fewstep.bench.markdown import table
from fewstep.bench.metrics import Moments, frechet_distance, rmse
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

__all__ = ["CALLS", "MADE", "SAMPLERS", "SHIFTS", "errors", "page"]


class Sampler(NamedTuple):
    """A solver on a grid; `draws` noise on the way, so that a distance to the ODE's solution says nothing of it."""

    solver: Solver
    grid: Grid | None = simple
    draws: bool = False


SAMPLERS: Mapping[str, Sampler] = {
    "EVODiff(), its own grid": Sampler(EVODiff(), None),
    "EVODiff(), simple": Sampler(EVODiff()),
    "euler": Sampler(DDIM()),
    "res_multistep": Sampler(RES(clock="sigma")),
    "uni_pc": Sampler(UniPC(3, "bh1")),
    "er_sde": Sampler(ERSDE(), draws=True),
    "gradient_estimation": Sampler(GradientEstimation(field="velocity")),
}
SHIFTS = (1.0, 3.0, 5.0, 7.0)
CALLS = (4, 6, 8, 10, 12, 20)
# The network at two guidance scales; "mixture" has no network in it.
MADE: Mapping[str, Callable[[str, Source], Problem]] = {
    "mixture": PROBLEMS["mixture"].make,
    "guided-1": partial(network, guidance=1.0),
    "guided-4": partial(network, guidance=4.0),
}
IMAGES, MANY = 32, 512


def page(problems: Sequence[Problem], images: int, many: int, say: Callable[[str], object]) -> str:
    """The page as Markdown: RMSE to the solution on `images` samples, Fréchet distances to the solution's on `many`."""
    parts = [INTRODUCTION.format(images=images, many=many)]
    for problem in problems:
        for shift in SHIFTS:
            say(f"{problem.name}, shift {shift:g} ...")
            found = errors(problem, shift, images, many)
            parts.append(f"## {problem.name}, shift {shift:g}\n")
            for what, column in (("RMSE", 0), ("Fréchet distance", 1)):
                rows = [[name, *(_shown(pair[column]) for pair in row)] for name, row in found.items()]
                parts.append(table([what, *map(str, CALLS)], rows))
    return "\n".join(parts)


def errors(problem: Problem, shift: float, images: int, many: int) -> dict[str, list[tuple[float | None, float]]]:
    """By sampler, for each number of calls: the RMSE, None where noise is drawn, and the distance in features."""
    schedule = Flow(shift)
    seeds = problem.seeds(max(images, many))
    exact = torch.cat([problem.solution(schedule, part) for part in batches(seeds)])
    target = Moments.of(problem.features(exact[:many]))

    def measured(sampler: Sampler, calls: int) -> tuple[float | None, float]:
        drawn = torch.cat([_drawn(problem, schedule, sampler, part, calls) for part in batches(seeds)])
        distance = frechet_distance(target, Moments.of(problem.features(drawn[:many])))
        return None if sampler.draws else rmse(drawn[:images], exact[:images]), distance

    return {name: [measured(sampler, calls) for calls in CALLS] for name, sampler in SAMPLERS.items()}


def _drawn(problem: Problem, schedule: Flow, sampler: Sampler, seeds: Sequence[int], calls: int) -> Tensor:
    return sample(
        problem.denoiser(schedule, seeds),
        problem.noise(seeds),
        nfe=calls,
        solver=sampler.solver,
        schedule=schedule,
        grid=sampler.grid,
        seeds=seeds,
    )


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


INTRODUCTION = """# Samplers of flow models, as users have them

For people with a flow model (Flux, SD3, Wan) who keep their front end's noise levels. You get what each sampler
leaves there, by shift and by the number of calls.

Every figure was measured by `python -m benchmarks.flow`, which writes this page. A flow at the shifts that well-known
models have; the samplers that ComfyUI's templates set, in this library's own form of them, each on the grid "simple",
which the templates set, too; EVODiff's default there and on its own grid. RMSE per pixel to the ODE's solution from the
same noise, on {images} images; and the Fréchet distance between the features of {many} samples and those of the
solutions, which is all that can be said of a sampler that draws noise on the way. Euler is DDIM; uni_pc is UniPC-3 with
its first variant, without the omission of a level that a front end may make.
"""


def main(
    data: Data = CIFAR10,
    problem: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(MADE)}; may be repeated.")] = None,
    split: Annotated[str, typer.Option(help="dev, to develop solvers on, or report.")] = "report",
    images: Annotated[int, typer.Option(help="Of the distances to solutions.")] = IMAGES,
    many: Annotated[int, typer.Option(help="Samples of a Fréchet distance.")] = MANY,
    out: Out = None,
) -> None:
    """Measure what users of flow models choose from, on the grid that they leave it at."""
    pick("--split", SPLITS, split)
    for name in problem or []:
        pick("--problem", MADE, name)

    def measured() -> str:
        made = source(data, split)
        return page([MADE[name](name, made) for name in problem or MADE], images, many, say)

    write(out, measured)


if __name__ == "__main__":
    typer.run(main)
