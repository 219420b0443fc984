"""`fewstep solvers`: all of them, by family."""

from __future__ import annotations

import json

import typer

from .options import SOME_SOLVERS, AsJson


def solvers(as_json: AsJson = False) -> None:
    """List the solvers by family: calls a step, measured order of convergence, what they are for."""
    from ..table import FAMILIES, SOLVERS, call

    if as_json:
        rows = [
            {"name": name, "family": type(entry.solver).__name__, "use": FAMILIES[type(entry.solver)],
             "python": call(entry.solver), "calls": entry.calls, "orders": entry.orders,
             "stochastic": entry.stochastic}
            for name, entry in SOLVERS.items()
        ]  # fmt: skip
        typer.echo(json.dumps(rows))
        return
    width = max(map(len, SOLVERS))
    typer.echo(f"  {'':{width}}  calls  order    in Python; * is what people choose from")
    for family, use in FAMILIES.items():
        typer.echo(f"\n{family.__name__}: {use}")
        for name, entry in SOLVERS.items():
            if type(entry.solver) is family:
                low, high = f"{min(entry.orders):.1f}", f"{max(entry.orders):.1f}"
                order = low if low == high else f"{low}-{high}"
                star = "*" if name in SOME_SOLVERS else " "
                typer.echo(f"{star} {name:{width}}  {entry.calls:5}  {order:7}  {call(entry.solver)}")
    typer.echo("\nTake one by --solver NAME or, in Python, from fewstep. The most calls of a step; order: of error,")
    typer.echo("least and most over six problems. docs/numerics.md has each, and docs/quality.md how the best compare.")
