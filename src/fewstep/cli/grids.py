"""`fewstep grids`: all of them, by family."""

from __future__ import annotations

import json

import typer

from .options import SOME_GRIDS, AsJson


def grids(as_json: AsJson = False) -> None:
    """List the grids, which say what noise levels a run visits."""
    from ..table import GRID_FAMILIES

    rows = {
        family: [
            {"name": name, "family": family, "python": repr(grid), "use": (grid.__doc__ or "").splitlines()[0]}
            for name, grid in members.items()
        ]
        for family, members in GRID_FAMILIES.items()
    }
    if as_json:
        typer.echo(json.dumps([row for members in rows.values() for row in members]))
        return
    typer.echo("In Python; * is what people choose from")
    for family, members in rows.items():
        typer.echo(f"\n{family}:")
        for row in members:
            star = "*" if row["name"] in SOME_GRIDS else " "
            typer.echo(f"{star} {row['name']:16}  {row['python']}\n    {row['use']}")
    typer.echo("\nTake one by --grid NAME or, in Python, from fewstep.grid; without, a solver takes its own.")
