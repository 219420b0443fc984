"""The page docs/latent.md: the default on a small latent model of other images, on which nothing was tuned.

    python -m benchmarks.latent --folder samples/latent --out docs/latent.md

It needs the extra `evidence`. The model is trained in `folder`, and measurements are kept in benchmarks/records/latent,
so that an interrupted run goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Annotated

import torch
import typer
from torch import Tensor

from fewstep.adapters import EDMModel
from fewstep.bench.compare import CONVERGED_NFE, converged
from fewstep.bench.markdown import table
from fewstep.bench.metrics import rmses
from fewstep.files import check_writable
from fewstep.grid import Grid, focused, karras, log_snr, time_uniform
from fewstep.prediction import Denoiser
from fewstep.sampling import sample, unit_noise
from fewstep.schedule import Discrete, Flow, Schedule
from fewstep.table import SOLVERS

from .command import Out, say, write
from .latent_model import CODING_STEPS, DENOISING_STEPS, latent_model, photographs
from .problems.network import Reclocked
from .quality.results import Measurement, Results

__all__ = ["BUDGETS", "GRIDS", "PEERS", "SCHEDULES", "best", "fill", "page"]

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2  # diffusers' "scaled_linear"
# What latent models have.
SCHEDULES: Mapping[str, Schedule] = {
    "Stable Diffusion's betas": Discrete((1 - BETAS).cumprod(0).tolist()),
    "flow": Flow(),
}
OURS, OWN_GRID = "evodiff", "its own"
PEERS = ("ddim", "dpmpp-2m", "unipc-2", "unipc-3", "deis-3", "ipndm-4", "gradient-estimation", "res-multistep")
GRIDS: Mapping[str, Grid] = {"time": time_uniform, "log-SNR": log_snr, "ρ = 7": karras, "focused": focused}
USUAL = ("ddim", "dpmpp-2m")
BUDGETS = (5, 8, 10, 15)
SEEDS = range(20_000, 20_016)
RECORDS = Path(__file__).parent / "records" / "latent"


def fill(model: EDMModel, results: Results, say: Callable[[str], object]) -> None:
    """Measure what `results` do not hold yet."""
    law, noise = Reclocked(model, model.schedule), unit_noise(SEEDS, model.shape)
    for name, schedule in SCHEDULES.items():

        def denoiser(x: Tensor, t: float, schedule: Schedule = schedule) -> Tensor:
            return law.denoised(x, schedule.node(t))

        def solution(schedule: Schedule = schedule, denoiser: Denoiser = denoiser) -> Tensor:
            return converged(denoiser, noise, schedule, grid=log_snr(to_zero=True))

        exact = results.solution(name, solution)
        for solver in (OURS, *PEERS):
            for grid_name, grid in ({OWN_GRID: None} if solver == OURS else GRIDS).items():
                for nfe in BUDGETS:
                    key = name, nfe, solver, grid_name
                    if not results.holds(key, (), 0):
                        say(", ".join(map(str, key)))
                        chosen = SOLVERS[solver].suited(isinstance(schedule, Flow))
                        found = sample(denoiser, noise, nfe=nfe, solver=chosen, schedule=schedule, grid=grid)
                        errors = [float(f"{error:.7g}") for error in rmses(found, exact).tolist()]
                        results.add(Measurement(*key, errors, [], [], {}))


def best(results: Results, schedule: str, nfe: int, solvers: Sequence[str]) -> Measurement:
    """The least RMSE of `solvers`, on the best grid of each, chosen afterwards."""
    found = [each for each in results if each.key[:2] == (schedule, nfe) and each.solver in solvers]
    return min(found, key=lambda each: each.rmse)


def page(results: Results) -> str:
    """The page as Markdown, of what `results` hold."""
    parts = [
        INTRODUCTION.format(images=len(SEEDS), converged=CONVERGED_NFE, coding=CODING_STEPS, denoising=DENOISING_STEPS)
    ]
    ratios: dict[str, list[float]] = {}
    for name in SCHEDULES:
        cells = {solver: [best(results, name, nfe, [solver]) for nfe in BUDGETS] for solver in (OURS, *PEERS)}
        rows = [[solver, *(f"{each.rmse:.4f} ({each.grid})" for each in row)] for solver, row in cells.items()]
        for what, solvers in (("the best of all", PEERS), ("the better of DDIM and 2M", USUAL)):
            peers = [best(results, name, nfe, solvers) for nfe in BUDGETS]
            pairs = list(zip(cells[OURS], peers, strict=True))
            ratios.setdefault(what, []).extend(ours.rmse / peer.rmse for ours, peer in pairs)
            rows.append([f"*ours over {what}*", *(_ratio(*pair) for pair in pairs)])
        parts += [f"## {name}\n", table(["", *map(str, BUDGETS)], rows)]
    parts.append("## In sum\n")
    for what, each in ratios.items():
        below = sum(ratio < 1 for ratio in each)
        mean, low, high = geometric_mean(each), min(each), max(each)
        spread = f"{mean:.2f} in geometric mean, {low:.2f} to {high:.2f}"
        parts.append(f"- Over {what}: {spread}; less error in {below} of {len(each)} cells.")
    return "\n".join([*parts, ""])


def _ratio(ours: Measurement, peer: Measurement) -> str:
    """Of RMSEs, with its standard error over samples: to first order in the mean squares, which are paired."""
    a, b = (torch.tensor(each.errors, dtype=torch.float64).square() for each in (ours, peer))
    ratio = ours.rmse / peer.rmse
    spread = (a / a.mean() - b / b.mean()).std().item() / 2 / math.sqrt(len(a))
    return f"{ratio:.2f} ± {ratio * spread:.1g}"


INTRODUCTION = """# Something latent, and other images

For people with a latent model who doubt what was tuned on the pixels of CIFAR-10. You get the error of the default and
of its peers on a latent model of photographs, which nothing in this repository was tuned on.

The model is small, and trained by the same command in minutes: an autoencoder of 32 × 32 pixels to 4 channels of 8 × 8,
in {coding} steps, and a denoiser of its latents, scaled to a standard deviation of 1, in {denoising}; on crops of seven
photographs that scikit-image ships, from a cat to the Hubble deep field. It is no large text-to-image model, has no
guidance, and says how solvers fare on such data, not how images look. `EVODiff()` is not told the deviation: nobody
tells it Stable Diffusion's.

RMSE per element of the latents to the converged solution from the same noise ({converged} steps of UniPC-3 in log-SNR,
to σ = 0), on {images} samples, by calls of the network. `EVODiff()` is on its own grid; each peer on the best for it in
each cell, chosen afterwards and named beside; so is "the best of all", which nobody can know in advance. ± is one
standard error, of the draw of samples. Written by `make latent`.
"""


def main(
    folder: Annotated[Path, typer.Option(help="Where the model is trained.")],
    records: Annotated[Path, typer.Option(help="Where measurements are kept.")] = RECORDS,
    out: Out = None,
) -> None:
    """Train a latent model, measure the default beside its peers on it, and write docs/latent.md."""

    def measured() -> str:
        check_writable(folder)
        model = latent_model(folder, photographs())
        results = Results(records, model.fingerprint)
        fill(model, results, say)
        return page(results)

    write(out, measured)


if __name__ == "__main__":
    typer.run(main)
