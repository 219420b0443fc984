"""The command behind `make stress`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli.parse import pick
from fewstep.solvers import EVODiff, Solver

from ..command import Out, say, write
from .measure import FOLDER, Bench, Kept, Maker
from .page import Measured, page
from .peers import Named
from .problems import KINDS, SPLITS, only, problems
from .ratios import report

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def solver_of(name: str) -> Solver | Maker:
    """By a name of `fewstep.table` or of the peers; or module:expression, a solver or what makes one for a problem.

    ValueError for an unknown name.
    """
    if ":" not in name:
        return Named(name)
    module, _, expression = name.partition(":")
    found: Solver | Maker = eval(expression, dict(vars(import_module(module))))
    return found


@app.command()
def main(
    split: Annotated[str, typer.Option(help="dev, to develop solvers on, or report.")] = "report",
    solver: Annotated[
        list[str] | None,
        typer.Option(help="Tables of this one, by name or as module:expression; may be repeated. Without, the page."),
    ] = None,
    part: Annotated[str, typer.Option("--only", help="A family of problems, or a part of their names.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="One schedule, two numbers of calls.")] = False,
    kind: Annotated[str, typer.Option(help="Of the problems of the tables: exact, networks or trees.")] = "exact",
    kept: Annotated[Path | None, typer.Option(help="Errors as JSON lines: goes on from them, adds to them.")] = None,
    folder: Annotated[Path, typer.Option(help="Where converged solutions and the peers' errors are kept.")] = FOLDER,
    out: Out = None,
) -> None:
    """Measure solvers beside their peers on problems that are nothing like images."""
    pick("--split", SPLITS, split)
    pick("--kind", KINDS, kind)
    errors = Kept(kept)

    def measured(kind: str, name: str, ours: Solver | Maker) -> Measured:
        found = only(problems(kind, split, folder), part)
        bench = Bench(found, folder, quick)
        say(f"{name}: {', '.join(found)} ...")
        return Measured(bench, bench.errors(ours, errors), bench.peers(ours))

    def tables() -> str:
        parts = []
        for name in solver or []:
            found = report(*measured(kind, name, solver_of(name)))
            parts += [f"# {name}\n", *(f"## {over}\n\n{lines}" for over, lines in found.items())]
        return "\n".join(parts)

    def whole() -> str:
        on_exact, on_networks = (measured(each, "EVODiff()", EVODiff()) for each in ("exact", "networks"))
        return page(on_exact, on_networks, split, f"python -m benchmarks.stress --split {split}")

    write(out, tables if solver else whole)


if __name__ == "__main__":
    app()
