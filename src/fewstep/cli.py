"""The command line: the only place where strings become objects. Needs the extra `cli`."""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

try:
    import typer
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.table import Table
    from rich.text import Text
except ImportError:
    sys.exit("error: the command line needs typer and rich: pip install 'fewstep[cli,diffusers]'")

from . import __version__
from .grid import Grid, karras, log_snr, time_quadratic, time_uniform
from .solvers import DDIM, DPMSolverPP, EVODiff, Heun, Solver, UniPC

if TYPE_CHECKING:
    from .adapters import EDMModel

SOLVERS: dict[str, Solver] = {
    "evodiff": EVODiff(),
    "evodiff-paper": EVODiff(mode="paper"),
    "ddim": DDIM(),
    "dpmpp-2m": DPMSolverPP(order=2),
    "dpmpp-3m": DPMSolverPP(order=3),
    "unipc-2": UniPC(order=2),
    "unipc-3": UniPC(order=3),
    "unipc-2-bh1": UniPC(order=2, variant="bh1"),
    "unipc-3-bh1": UniPC(order=3, variant="bh1"),
    "heun": Heun(),
}
GRIDS: dict[str, Grid] = {
    "log-snr": log_snr,
    "karras": karras,
    "time-uniform": time_uniform,
    "time-quadratic": time_quadratic,
}
NETWORK_BATCH = 8  # images per evaluation of the network, always, so that --batch-size changes no pixel
EXIT_FAILED = 1
SHOWN = 4  # images in a cell of the comparison

app = typer.Typer(
    name="fewstep",
    help="EVODiff and its field: good samples from a diffusion model in 5-20 calls, without retraining.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
bench = typer.Typer(help="Measurements behind the documentation.", no_args_is_help=True)
app.add_typer(bench, name="bench")
log = Console(stderr=True)

Model = Annotated[str, typer.Option(help="A packaged model (see `fewstep models`) or a folder.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the first image; the next one has the next seed.")]
GridName = Annotated[str | None, typer.Option("--grid", help=f"{', '.join(GRIDS)}; default: the solver's own.")]
Label = Annotated[str, typer.Option(help="A class by name or number, 'all' to go through them, or 'none'.")]
Guidance = Annotated[float, typer.Option(help="Classifier-free guidance scale; 1 is none.")]
Device = Annotated[str, typer.Option(help="Where the model runs: cpu, cuda, mps ...")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout, and nothing else there.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@app.callback(invoke_without_command=True)
def main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def sample(
    model: Model = "cifar16",
    solver: Annotated[str, typer.Option(help=", ".join(SOLVERS))] = "evodiff",
    nfe: Annotated[int, typer.Option(min=1, help="Calls of the model for each image.")] = 10,
    n: Annotated[int, typer.Option(min=1, help="How many images.")] = 64,
    seed: Seed = 0,
    grid: GridName = None,
    label: Label = "all",
    guidance: Guidance = 1.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time; changes no pixel on a CPU.")] = 16,
    device: Device = "cpu",
    npz: Annotated[bool, typer.Option("--npz", help="One samples.npz instead of a PNG for each image.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the images, grid.png and run.json.")] = Path("samples"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another run in that folder.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Draw images. An interrupted run goes on when the same command is given again."""
    chosen, chosen_grid = _pick("--solver", SOLVERS, solver), _pick_grid(grid)
    with _errors(debug):
        from .pictures import pixels
        from .runs import Run
        from .sampling import sample as draw
        from .sampling import unit_noise

        settings = {
            "model": model, "solver": solver, "solver_options": repr(chosen), "nfe": nfe, "n": n, "seed": seed,
            "grid": grid, "label": label, "guidance": guidance, "format": "npz" if npz else "png",
        }  # fmt: skip
        run = Run(out, settings, npz, overwrite)
        loaded = _load(model, device)
        denoise = _denoisers(loaded, label, guidance)
        facts = {"device": device, "versions": _versions()}
        run.finish("running", **facts)
        made = len(run.images)
        started, status = time.perf_counter(), "done"
        try:
            with _progress("sampling", n, "images", done=made) as advance:
                for first in range(made, n, batch_size):
                    indices = range(first, min(first + batch_size, n))
                    noise = unit_noise([seed + i for i in indices], loaded.shape, device=device)
                    images = draw(
                        denoise(indices), noise, nfe=nfe, solver=chosen, schedule=loaded.schedule, grid=chosen_grid
                    )
                    run.add(pixels(images))
                    advance(len(indices))
        except KeyboardInterrupt:
            status = "interrupted"
        except BaseException:
            run.finish("failed", **facts)
            raise
        seconds = time.perf_counter() - started
        drawn = len(run.images) - made
        record = run.finish(status, seconds=round(seconds, 3), images_per_second=round(drawn / seconds, 3), **facts)
    if as_json:
        typer.echo(json.dumps({**record, "out": str(out)}))
    if status == "interrupted":
        log.print(f"interrupted: {len(run.images)} of {n} images are in {out}; the same command goes on from there")
        raise typer.Exit(EXIT_FAILED)
    log.print(f"{n} images in {out}, {drawn / seconds:.1f} images/s; the sheet is {out / 'grid.png'}")


@app.command()
def compare(
    model: Model = "cifar16",
    solvers: Annotated[str, typer.Option(help=f"Comma-separated: {', '.join(SOLVERS)}")] = (
        "evodiff,ddim,dpmpp-2m,unipc-3,heun"
    ),
    nfe: Annotated[str, typer.Option(help="Comma-separated budgets.")] = "5,8,10,15",
    n: Annotated[int, typer.Option(min=1, help="Images per cell; four of them are drawn.")] = 16,
    seed: Seed = 0,
    grid: GridName = None,
    label: Label = "all",
    guidance: Guidance = 1.0,
    device: Device = "cpu",
    out: Annotated[Path, typer.Option(help="The picture, a PNG.")] = Path("compare.png"),
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Draw solvers (rows) at several budgets (columns) from the same noise, with their distance to convergence."""
    names = [name.strip() for name in solvers.split(",")]
    chosen = {name: _pick("--solvers", SOLVERS, name) for name in names}
    budgets, chosen_grid = _budgets(nfe), _pick_grid(grid)
    with _errors(debug):
        from .bench.compare import CONVERGED_NFE, converged
        from .bench.compare import compare as measure
        from .pictures import Cell, comparison, pixels, sheet
        from .runs import write_atomically
        from .sampling import unit_noise

        if not out.parent.is_dir():
            raise FileNotFoundError(f"cannot write {out}: there is no folder {out.parent}")
        write_atomically(out.with_name(f".{out.name}.writable"), b"")
        out.with_name(f".{out.name}.writable").unlink()
        loaded = _load(model, device)
        denoiser = _denoisers(loaded, label, guidance)(range(n))
        noise = unit_noise(range(seed, seed + n), loaded.shape, device=device)
        total = n * (len(chosen) * len(budgets) + 1)
        with _progress("comparing", total, "images") as advance:
            started = time.perf_counter()
            exact = converged(denoiser, noise, loaded.schedule)
            exact_seconds = time.perf_counter() - started
            advance(n)
            results = []
            for result in measure(denoiser, noise, loaded.schedule, chosen, budgets, exact, chosen_grid):
                results.append(result)
                advance(n)

        def cell(images: Any, rmse: float, seconds: float, calls: int) -> Cell:
            return Cell(sheet(pixels(images[:SHOWN]), columns=SHOWN), rmse, seconds, calls)

        rows = [
            [cell(r.images, r.rmse, r.seconds, r.calls) for r in results if r.solver == name]
            + [cell(exact, 0.0, exact_seconds, CONVERGED_NFE)]
            for name in chosen
        ]
        title = f"{model}, {n} images from seed {seed}, guidance {guidance:g}"
        columns = [*(f"{b} calls" for b in budgets), "converged"]
        write_atomically(out, comparison(title, list(chosen), columns, rows))
    if as_json:
        fields = ("solver", "nfe", "rmse", "seconds", "calls")
        cells = [{field: getattr(result, field) for field in fields} for result in results]
        facts = {"model": model, "n": n, "seed": seed, "guidance": guidance, "label": label, "grid": grid}
        typer.echo(json.dumps({"out": str(out), **facts, "versions": _versions(), "cells": cells}))
    else:
        table = Table("solver", *columns[:-1], title=f"RMSE to the converged solution | seconds | calls ({title})")
        for name in chosen:
            cells_of = [r for r in results if r.solver == name]
            table.add_row(name, *(f"{r.rmse:.4f} | {r.seconds:.2f} | {r.calls}" for r in cells_of))
        Console().print(table)
    log.print(f"the picture is {out}")


@app.command()
def models(as_json: AsJson = False) -> None:
    """List what can be loaded, and how."""
    from .adapters import packaged_models

    packaged = packaged_models()
    if as_json:
        typer.echo(json.dumps(packaged))
        return
    for name, summary in packaged.items():
        typer.echo(f"{name:12}{summary}")
    typer.echo("FOLDER      a diffusers UNet2DModel with EDM preconditioning: config.json, safetensors, fewstep.json")


@bench.command()
def numerics(
    out: Annotated[Path | None, typer.Option(help="Write the page here instead of to stdout.")] = None,
    debug: Debug = False,
) -> None:
    """Measure the order of convergence of every solver, and what the choices in the code rest on."""
    with _errors(debug):
        from .bench.numerics import page
        from .runs import write_atomically

        text = page(_load("cifar16", "cpu"), lambda what: log.print(what))
        if out is None:
            typer.echo(text)
        else:
            write_atomically(out, text.encode())


@bench.command()
def overhead(
    out: Annotated[Path | None, typer.Option(help="Write the page here instead of to stdout.")] = None,
    debug: Debug = False,
) -> None:
    """Time the solvers themselves, with a free denoiser, beside diffusers' schedulers in the same run."""
    with _errors(debug):
        from .bench.overhead import page
        from .runs import write_atomically

        text = page()
        if out is None:
            typer.echo(text)
        else:
            write_atomically(out, text.encode())


@contextmanager
def _errors(debug: bool) -> Iterator[None]:
    """One line and a remedy on stderr, exit code 1; the traceback with --debug."""
    try:
        yield
    except typer.Exit:
        raise
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        if debug:
            raise
        log.print(f"[red]error:[/] {Text(str(error)).plain}", highlight=False, soft_wrap=True)
        raise typer.Exit(EXIT_FAILED) from error


def _pick(option: str, table: dict[str, Any], name: str) -> Any:
    if name not in table:
        raise typer.BadParameter(f"{name!r} is not known; choose from {', '.join(table)}", param_hint=option)
    return table[name]


def _pick_grid(name: str | None) -> Grid | None:
    return None if name is None else _pick("--grid", GRIDS, name)


def _budgets(text: str) -> list[int]:
    try:
        budgets = [int(part) for part in text.split(",")]
    except ValueError:
        budgets = [0]
    if min(budgets) < 1:
        raise typer.BadParameter(f"{text!r} must be integers of at least 1, like 5,8,10", param_hint="--nfe")
    return budgets


def _load(model: str, device: str) -> EDMModel:
    from .adapters import load_model

    return load_model(model, device=device, batch=NETWORK_BATCH)


def _denoisers(model: EDMModel, label: str, guidance: float) -> Any:
    """From the indices of images to the denoiser of their classes."""
    names = list(model.classes)
    if label == "none" or (label == "all" and not names):
        if guidance != 1:
            raise ValueError(f"guidance needs a class: use --label, or --guidance 1; got --guidance {guidance:g}")
        return lambda indices: model
    if label == "all":
        return lambda indices: model.conditioned([i % len(names) for i in indices], guidance)
    if label in names:
        number = names.index(label)
    elif label.isdigit() and int(label) < len(names):
        number = int(label)
    else:
        raise ValueError(f"--label {label!r} is not a class of this model: {', '.join(names) or 'it has none'}")
    return lambda indices: model.conditioned([number] * len(indices), guidance)


def _versions() -> dict[str, str]:
    packages = ("torch", "numpy", "diffusers")
    return {"fewstep": __version__, **{name: importlib.metadata.version(name) for name in packages}}


class _Rate(ProgressColumn):
    def render(self, task: Any) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f} {task.fields['unit']}/s" if speed else "")


@contextmanager
def _progress(what: str, total: int, unit: str, done: int = 0) -> Iterator[Any]:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, _Rate(), TimeRemainingColumn(), console=log) as progress:
        task = progress.add_task(what, total=total, completed=done, unit=unit)
        yield lambda amount: progress.advance(task, amount)
