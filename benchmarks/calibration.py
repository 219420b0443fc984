"""The page docs/calibration.md: the error that the prior of EVODiff's default foretells, beside the one measured.

    python -m benchmarks.calibration --out docs/calibration.md

It reads the measurements of `benchmarks.quality` and takes seconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import typer
from torch import Tensor

from fewstep.bench.markdown import table
from fewstep.sampling import drive, plan
from fewstep.schedule import DATA_STD, Node, Schedule
from fewstep.solvers import EVODiff
from fewstep.solvers.evodiff.path_prior import Paths, mean_step
from fewstep.solvers.evodiff.variance import PRIOR

from .command import Out, write
from .quality.results import Measurement
from .quality.run import FULL, OWN_GRID, SETTINGS, finished

__all__ = ["foretold", "page", "prior_run"]

RECORDS = Path(__file__).parent / "quality" / "records" / "report-full"
CLEAN = 30.0  # half log-SNR in place of that of sigma = 0


def prior_run(schedule: Schedule, nfe: int) -> tuple[Paths, tuple[Node, ...], Tensor]:
    """The prior of a run of EVODiff(), its nodes, and where the solver takes the prior's own path, as `Paths` has it.

    All that a run computes of the prior is linear in independent normals, but for the trust, whose sizes are means of
    squares over many elements. So the solver's own stages are run on one sample, whose elements are the coefficients of
    these normals: a sum of their squares is a variance, and what they end at is the solver's error in every mode.
    """
    nodes, stages = plan(schedule, EVODiff(), nfe=nfe)
    noisy = [node.lam for node in nodes if node.sigma]
    paths = Paths(PRIOR, noisy if nodes[-1].sigma else [*noisy, CLEAN], mean_step(noisy))
    place = {node.time: i for i, node in enumerate(nodes)}

    def denoiser(x: Tensor, t: float) -> Tensor:
        i = place[t]
        return torch.from_numpy(paths.answer(i, x.numpy() / (nodes[i].alpha * DATA_STD)))[None] * DATA_STD

    x = torch.from_numpy(paths.state[0].ravel())[None] * (DATA_STD * nodes[0].alpha)
    *_, last = drive(denoiser, x, nodes[0], stages, x.dtype, lambda node: x, differentiable=False)
    return paths, nodes, last.x


def foretold(schedule: Schedule, nfe: int) -> float:
    """The RMSE, an element of data of standard deviation 0.5, that EVODiff's prior expects of EVODiff() itself."""
    paths, nodes, x = prior_run(schedule, nfe)
    path = paths.state[-1].ravel() * DATA_STD
    return float(np.linalg.norm(x.numpy() / nodes[-1].alpha - path))


def measured(problem: str) -> Mapping[tuple[str, int], float]:
    """The RMSE of EVODiff() on its own levels, by schedule and calls."""
    lines = (RECORDS / problem / "results.jsonl").read_text().splitlines()
    cells = map(Measurement.read, lines)
    return {(each.schedule, each.nfe): each.rmse for each in cells if (each.solver, each.grid) == ("evodiff", OWN_GRID)}


def page() -> str:
    """The page as Markdown."""
    found = {problem: measured(problem) for problem in finished(RECORDS, FULL)}
    parts = [INTRODUCTION]
    for name, setting in SETTINGS.items():
        told = {nfe: foretold(setting.schedule, nfe) for nfe in FULL.budgets}
        rows = [["*foretold*", *(f"{told[nfe]:.2g}" for nfe in told)]]
        for problem, cells in found.items():
            rows.append([problem, *(f"{cells[name, nfe] / told[nfe]:.2g}" for nfe in told)])
        parts += [f"## {name}\n", table(["", *map(str, FULL.budgets)], rows)]
    network = [
        math.log(found["model"][name, nfe] / foretold(setting.schedule, nfe))
        for name, setting in SETTINGS.items()
        for nfe in FULL.budgets
    ]
    parts.append(
        READING.format(mean=math.exp(np.mean(network)), low=math.exp(min(network)), high=math.exp(max(network)))
    )
    return "\n".join(parts)


INTRODUCTION = """# Does the prior know its error?

For those who ask whether EVODiff's prior describes their data. You get the error that the prior foretells of a run
beside the error that was measured, on problems from Gaussians to guided networks.

The weights of `EVODiff()` minimise a variance under a prior of the sampling path: what is held likely of it before the
model is asked ([least-variance.md](least-variance.md)). The same prior foretells what is left, the error of the
solver's own run. The measured errors are of the problems of [quality.md](quality.md), which describes each, by calls of
the model. Written by `python -m benchmarks.calibration`.

The first row of each table is the foretold RMSE, for data of standard deviation 0.5. The other rows are the measured
error over the foretold one: at 1 the prior is right, below 1 it is too careful, above 1 too sure.
"""
READING = """## What it says

- On the packaged network without guidance the prior is nearly right: {mean:.2f} in geometric mean over all schedules
  and calls, {low:.2f} to {high:.2f}. It was not told of the network; its numbers were chosen on other classes.
- On Gaussians and mixtures of them it is too careful: they have less surprise than images have. That costs little,
  since the weights change slowly with the prior.
- Where single samples decide late and at once (a finite set of images, strong guidance) it is far too sure, the more so
  the more calls are made: there the error falls slower than any smooth prior foretells. What protects these runs is not
  the prior but the trust measured on each sample's own answers.
- So the foretold error is no error bar for a model that nobody measured. `fewstep tune` and `fewstep bench` measure.
"""


def main(out: Out = None) -> None:
    """Compare foretold and measured errors, and write docs/calibration.md."""
    write(out, page)


if __name__ == "__main__":
    typer.run(main)
