"""The command behind `make quality`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli.parse import pick
from fewstep.models import CIFAR10

from ..command import Data, Out, say, source, write
from ..problems import SPLITS
from .page import page
from .ratios import OURS, PUBLISHED
from .run import FULL, QUICK, cells, fill

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    results: Annotated[Path, typer.Option(help="Folder of the measurements; an interrupted run goes on from there.")],
    data: Data = CIFAR10,
    split: Annotated[str, typer.Option(help="dev, to develop solvers on, or report.")] = "report",
    quick: Annotated[bool, typer.Option("--quick", help="A reduced table, in minutes; the whole takes hours.")] = False,
    problem: Annotated[list[str] | None, typer.Option(help="Measure this one only; may be repeated.")] = None,
    again: Annotated[list[str] | None, typer.Option(help="Measure this solver anew; may be repeated.")] = None,
    out: Out = None,
) -> None:
    """Measure EVODiff's default beside the best peer at its best grid, on problems whose solution is known."""
    plan = QUICK if quick else FULL
    pick("--split", SPLITS, split)
    for name in problem or []:
        pick("--problem", plan.problems, name)
    for name in again or []:
        pick("--again", (OURS, PUBLISHED, *plan.peers), name)
    folder = results / f"{split}-{plan.name}"

    def measured() -> str:
        fill(source(data, split), folder, plan, problem or plan.problems, say, again or ())
        return page(cells(folder, plan), plan, split, "make quality-quick" if quick else "make quality")

    write(out, measured)


if __name__ == "__main__":
    app()
