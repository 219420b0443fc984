"""What a Frechet distance of the packaged network is made of: the table of docs/quality.md, "Where it loses, and why".

    python -m benchmarks.quality.distance_parts --data cifar10.npz --results benchmarks/quality/records/report-full

Images of 5 calls are cut at a frequency and joined with the other part of the solution from the same noise. Solutions
with less energy in one part tell what the features make of that alone. Distances are to the network's own distribution,
its moments those that `make quality` keeps under RESULTS (made there if missing, in ten minutes).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from torch import Tensor

from fewstep import EDM, EVODiff, UniPC, focused, log_snr
from fewstep.bench.markdown import table
from fewstep.bench.metrics import Moments, frechet_distance, rmse
from fewstep.grid import GridFunction
from fewstep.models import CIFAR10
from fewstep.solvers import Solver

from ..command import Data, source
from ..problems import PROBLEMS
from ..problems.base import batches
from ..problems.suite import OWN
from .results import Results

IMAGES, CALLS = 512, 5
CLOSE = 20  # calls that leave an RMSE of 0.001: the solution
CUT = 4.0  # cycles an image, between shapes and details
SOLVERS: dict[str, tuple[Solver, GridFunction | None]] = {
    "EVODiff()": (EVODiff(), None),
    "EVODiff(), fall 0.3": (EVODiff(), focused(fall=0.3)),
    "EVODiff(), fall 0.2": (EVODiff(), focused(fall=0.2)),
    "UniPC-3, even log-SNR": (UniPC(order=3), log_snr),
}
LESS = (("from 8 cycles on", 8.0, float("inf"), 0.75), ("below 2 cycles", 0.0, 2.0, 2 / 3))


def main(
    results: Annotated[Path, typer.Option(help="folder of the measurements of a split", exists=True)],
    data: Data = CIFAR10,
) -> None:
    log = Console(stderr=True)
    problem, schedule = PROBLEMS["model"].make("model", source(data, "dev")), EDM()
    own = Results(results / "model", problem.fingerprint).moments(OWN, problem.targets[OWN])

    def drawn(solver: Solver, nfe: int, grid: GridFunction | None) -> Tensor:
        log.print(f"{nfe} calls of {solver!r} ...")
        parts = batches(problem.seeds(IMAGES))
        return torch.cat([problem.drawn(schedule, part, solver, nfe, grid) for part in parts]).double()

    def distance(images: Tensor) -> str:
        return f"{frechet_distance(own, Moments.of(problem.features(images.float()))):.2f}"

    def error(images: Tensor) -> str:
        return f"{rmse(images, solution):.3f}"

    solution = drawn(EVODiff(), CLOSE, None)
    cycles = _cycles(solution.shape[-1])
    low = (cycles < CUT).double()
    shapes, rows = _filtered(solution, low), []
    for name, (solver, grid) in SOLVERS.items():
        images = drawn(solver, CALLS, grid)
        theirs = _filtered(images, low)
        joined = theirs + solution - shapes, shapes + images - theirs
        rows.append([name, *map(distance, (images, *joined)), error(images)])
    rows.append(["the solution", *[distance(solution)] * 3, error(solution)])
    for name, start, stop, energy in LESS:
        images = _filtered(solution, torch.where((start <= cycles) & (cycles < stop), energy**0.5, 1.0))
        rows.append([f"the solution, {energy:.2f} of its energy {name}", distance(images), "", "", error(images)])
    print(
        table(["", "whole", "its shapes, the solution's details", "the solution's shapes, its details", "RMSE"], rows)
    )


def _cycles(side: int) -> Tensor:
    """The frequency of each coefficient of an image's Fourier transform, in cycles an image."""
    frequencies = torch.fft.fftfreq(side) * side
    return torch.hypot(frequencies[:, None], frequencies[None])


def _filtered(images: Tensor, gain: Tensor) -> Tensor:
    filtered: Tensor = torch.fft.ifft2(torch.fft.fft2(images) * gain).real
    return filtered


if __name__ == "__main__":
    typer.run(main)
