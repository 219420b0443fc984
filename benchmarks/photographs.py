"""The strips of images in docs/figures: the same noise through the packaged network, by what one would choose among.

Nothing is picked: the first seeds, a class each. About two minutes on one core.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer
from PIL import Image
from torch import Tensor

from fewstep.bench.compare import converged
from fewstep.bench.metrics import rmse
from fewstep.files import write_atomically
from fewstep.grid import Grid, karras
from fewstep.pictures import pixels, png
from fewstep.sampling import sample, unit_noise
from fewstep.solvers import DDIM, DPMSolverPP, EVODiff, Solver

from .command import packaged, say
from .figures import DOCS

__all__ = ["STRIPS", "Strip", "strip"]

SEEDS = range(8)
GUIDANCE = 2.0
SIDE = 96  # pixels of an image in a strip: three times the network's
GAP = 4


class Strip(NamedTuple):
    """A file, and the run that made it; None is the solver's own grid."""

    solver: Solver
    calls: int
    grid: Grid | None = None


STRIPS = {
    "five-evodiff": Strip(EVODiff(), 5),
    "five-2m": Strip(DPMSolverPP(order=2), 5, karras),
    "five-euler": Strip(DDIM(), 5, karras),
    "calls-3": Strip(EVODiff(), 3),
    "calls-8": Strip(EVODiff(), 8),
    "calls-15": Strip(EVODiff(), 15),
}


def strip(images: Tensor) -> bytes:
    """(B, C, H, W) in [-1, 1] side by side as a PNG, enlarged, transparent between them."""
    canvas = Image.new("RGBA", (len(images) * (SIDE + GAP) - GAP, SIDE))
    for k, image in enumerate(pixels(images)):
        canvas.paste(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC), (k * (SIDE + GAP), 0))
    return png(np.asarray(canvas))


def main(out: Annotated[Path, typer.Option(help="The folder.")] = DOCS / "figures") -> None:
    """Draw the strips anew, and say the error of each to the converged images."""
    model = packaged()
    denoiser = model.conditioned([seed % len(model.classes) for seed in SEEDS], GUIDANCE)
    noise = unit_noise(SEEDS, model.shape)
    exact = converged(denoiser, noise, model.schedule)
    write_atomically(out / "converged.png", strip(exact))
    for name, (solver, calls, grid) in STRIPS.items():
        images = sample(denoiser, noise, nfe=calls, solver=solver, grid=grid)
        write_atomically(out / f"{name}.png", strip(images))
        say(f"{name}: RMSE {rmse(images, exact):.3f}")


if __name__ == "__main__":
    typer.run(main)
