"""The command of the stress bench: python -m benchmarks.stress.run."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from fewstep.files import check_writable, write_atomically
from fewstep.solvers import EVODiff, Solver

from .measure import FOLDER, Bench, Kept, Maker
from .page import Measured, page
from .peers import Named
from .problems import SPLITS, exact, networks, only
from .ratios import report

__all__ = ["solver_of"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def solver_of(name: str) -> Solver | Maker:
    """By a name of the table or of the peers; or module:expression, which is a solver, or makes one for a problem.

    ValueError for an unknown name.
    """
    if ":" not in name:
        return Named(name)
    module, _, expression = name.partition(":")
    found: Solver | Maker = eval(expression, dict(vars(import_module(module))))
    return found


@app.command()
def main(
    split: Annotated[str, typer.Option(help="dev, to develop solvers on, or report.")] = "dev",
    solver: Annotated[
        list[str] | None,
        typer.Option(help="Tables of it: a name, or module:expression; may be repeated. Without, the page."),
    ] = None,
    part: Annotated[str, typer.Option("--only", help="A family of problems, or a part of their names.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="One schedule, two numbers of calls.")] = False,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="The networks in place of exact problems.")] = False,
    kept: Annotated[Path | None, typer.Option(help="JSON lines: goes on from those, and adds to them.")] = None,
    folder: Annotated[Path, typer.Option(help="Where converged solutions and the peers' errors are kept.")] = FOLDER,
    out: Annotated[Path | None, typer.Option("--out", help="Write here instead of to stdout.")] = None,
) -> None:
    """Measure solvers beside their peers on problems that are nothing like images."""
    if split not in SPLITS:
        raise typer.BadParameter(f"--split must be one of {', '.join(SPLITS)}; got {split!r}")
    if out is not None:
        check_writable(out.parent)
    errors = Kept(kept)

    def measured(trained: bool, ours: Solver | Maker) -> Measured:
        found = only(networks(split, folder) if trained else exact(split), part)
        bench = Bench(found, folder, quick)
        return Measured(bench, bench.errors(ours, errors), bench.peers(ours))

    if solver:
        parts = []
        for name in solver:
            tables = report(*measured(pretrained, solver_of(name)))
            parts += [f"# {name}\n", *(f"## {over}\n\n{lines}" for over, lines in tables.items())]
        text = "\n".join(parts)
    else:
        command = f"python -m benchmarks.stress.run --split {split}"
        text = page(measured(False, EVODiff()), measured(True, EVODiff()), split, command)
    if out is None:
        print(text)
    else:
        write_atomically(out, text.encode())


if __name__ == "__main__":
    app()
