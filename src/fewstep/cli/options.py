"""Options that several commands have. Their help names what people choose from without importing it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

# Of fewstep.table, which imports torch.
SOME_SOLVERS = (
    "evodiff", "evodiff-published", "unipc-2", "unipc-3", "dpmpp-2m", "dpmpp-3m", "sde-dpmpp-2m", "ipndm-4", "heun",
    "ddim",
)  # fmt: skip
SOME_GRIDS = ("focused", "log-snr", "karras", "time-uniform", "time-quadratic", "kl-optimal", "beta")
ALL_SOLVERS = f"{', '.join(SOME_SOLVERS)}; `fewstep solvers` lists all"
ALL_GRIDS = f"{', '.join(SOME_GRIDS)}; `fewstep grids` lists all"
MAX_SEED = 2**63 - 1


def path(text: str) -> Path:
    if not str(text):  # which Path takes for the current folder
        raise typer.BadParameter("is empty: give a path")
    return Path(text)


Model = Annotated[str, typer.Option(help="A packaged model, a folder, or a name on the Hub: see `fewstep models`.")]
Seed = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the first image; the next has the next seed.")]
GridName = Annotated[str | None, typer.Option("--grid", help=f"{ALL_GRIDS}. Default: the solver's own.")]
Label = Annotated[str, typer.Option(help="A class by name or number, 'none', or 'all': seed s draws class s, in turn.")]
Guidance = Annotated[
    float, typer.Option(help="Scale: 1 is none; of ADM's classifier 0 is none, and 1 what its authors had.")
]
Device = Annotated[str, typer.Option(help="Where the model runs: cpu, cuda, mps ..., or auto, the fastest there is.")]
Prompt = Annotated[str | None, typer.Option(help="What to draw, for models of text; '' is nothing in particular.")]
Prompts = Annotated[
    Path | None,
    typer.Option(parser=path, metavar="<path>", help="A file of prompts, one a line: image i draws prompt i, in turn."),
]
Negative = Annotated[str | None, typer.Option(help="What not to draw; needs guidance above 1.")]
Size = Annotated[str | None, typer.Option(help="Width and height of the images of a pipeline, such as 768x512.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout, and nothing else there.")]
Statistics = Annotated[
    list[Path] | None,
    typer.Option(
        parser=path, metavar="<path>", help="A file of `fewstep estimate`, for solvers that need one; may be repeated."
    ),
]
Plan = Annotated[
    Path | None, typer.Option(parser=path, metavar="<path>", help="A file of `fewstep tune`, for the solver 'tuned'.")
]
OverwriteFile = Annotated[bool, typer.Option("--overwrite", help="Replace what else --out is, once this is done.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
