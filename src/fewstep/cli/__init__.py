"""The command line, a command a file: the only place where strings become objects. Needs the extra `cli`.

A command imports what it needs when it runs, so that its help takes no seconds.
"""

from __future__ import annotations

import sys
from importlib.resources import files
from typing import Annotated, Any

try:
    import rich  # noqa: F401
    import typer
    from typer.core import TyperGroup
except ImportError:
    sys.exit("error: the command line needs typer and rich: pip install 'fewstep[cli]'")

from .. import __version__
from ..signals import INTERRUPTED
from . import analyze, bench, compare, convert, estimate, grids, models, restore, sample, solvers, tune
from .show import say

COMMIT = "commit.txt"


class Commands(TyperGroup):
    """Ctrl-C ends any command alike: one line, with what the interruption knows of the work, and exit code 130."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interruption:
            say(": ".join(["interrupted", *map(str, interruption.args)]))
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    name="fewstep",
    cls=Commands,
    help="EVODiff and its field: good samples from a diffusion model in 5-20 calls, without retraining.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # an error stays one line
)


@app.callback(invoke_without_command=True)
def main(version: Annotated[bool, typer.Option("--version", help="Print the version and its commit.")] = False) -> None:
    if version:
        commit = files("fewstep").joinpath(COMMIT)  # of hatch_build.py; an editable install has none
        typer.echo(f"{__version__} {commit.read_text().strip()}" if commit.is_file() else __version__)
        raise typer.Exit


app.command()(sample.sample)
app.command()(restore.restore)
app.command()(compare.compare)
app.command()(tune.tune)
app.command()(analyze.analyze)
app.command()(models.models)
app.command()(solvers.solvers)
app.command()(grids.grids)
app.add_typer(estimate.app, name="estimate")
app.add_typer(bench.app, name="bench")
app.add_typer(convert.app, name="convert")
