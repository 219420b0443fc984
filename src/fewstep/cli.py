"""The command line: the only place where strings become objects. Needs the extra `cli`."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import product
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

import torch
from torch import Tensor

from . import __version__
from . import grid as grids
from .adapters.edm import DEFAULT_MODEL
from .bench.images import CIFAR10
from .grid import Grid
from .prediction import Denoiser
from .solvers import Solver
from .table import SOLVERS as TABLE

if TYPE_CHECKING:
    import numpy as np

    from .adapters import EDMModel
    from .bench.problems import Source
    from .runs import Run

SOLVERS: dict[str, Solver] = {name: entry.solver for name, entry in TABLE.items()}
GRIDS: dict[str, Grid] = {
    "focused": grids.focused,
    "log-snr": grids.log_snr,
    "log-snr-2": grids.log_snr(order=2),
    "karras": grids.karras,
    "kl-optimal": grids.kl_optimal,
    "scire-nsr": grids.scire_nsr,
    "time-uniform": grids.time_uniform,
    "time-quadratic": grids.time_quadratic,
    "beta": grids.beta,
    "linspace": grids.linspace,
    "leading": grids.leading(offset=1),
    "trailing": grids.trailing,
    "linear-quadratic": grids.linear_quadratic,
    "dm-nonuniform": grids.dm_nonuniform,
    "ays-sd15": grids.ays(model="sd15"),
    "ays-sdxl": grids.ays(model="sdxl"),
    "ays-svd": grids.ays(model="svd"),
    "gits-sd15": grids.gits(model="sd15"),
    "gits-cifar10": grids.gits(model="cifar10"),
}
NETWORK_BATCH = 8  # images per evaluation of the network, always, so that --batch-size changes no pixel
EXIT_FAILED = 1
MAX_SEED = 2**63 - 1
SHOWN = 4  # images in a cell of the comparison

app = typer.Typer(
    name="fewstep",
    help="EVODiff and its field: good samples from a diffusion model in 5-20 calls, without retraining.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # an error stays one line
)
bench = typer.Typer(help="Measurements behind the documentation.", no_args_is_help=True)
app.add_typer(bench, name="bench")
estimate = typer.Typer(help="What DPM-Solver-v3 and Analytic-DPM need to know of a model.", no_args_is_help=True)
app.add_typer(estimate, name="estimate")
log = Console(stderr=True)

Model = Annotated[str, typer.Option(help="A packaged model (see `fewstep models`) or a folder.")]
Seed = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the first image; the next has the next seed.")]
GridName = Annotated[str | None, typer.Option("--grid", help=f"{', '.join(GRIDS)}; default: the solver's own.")]
EstimateLabel = Annotated[str, typer.Option("--label", help="'all': each image with its class; 'none': without.")]
Label = Annotated[str, typer.Option(help="A class by name or number, 'none', or 'all': seed s draws class s, in turn.")]
Guidance = Annotated[float, typer.Option(help="Classifier-free guidance scale; 1 is none.")]
Device = Annotated[str, typer.Option(help="Where the model runs: cpu, cuda, mps ...")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout, and nothing else there.")]
Statistics = Annotated[
    list[Path] | None, typer.Option(help="A file of `fewstep estimate`, for solvers that need one; may be repeated.")
]
Page = Annotated[Path | None, typer.Option("--out", help="Write the page here instead of to stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@app.callback(invoke_without_command=True)
def main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def sample(
    model: Model = DEFAULT_MODEL,
    solver: Annotated[str, typer.Option(help=", ".join(SOLVERS))] = "evodiff",
    nfe: Annotated[int, typer.Option(min=1, help="Calls of the model for each image.")] = 10,
    n: Annotated[int, typer.Option(min=1, help="How many images.")] = 64,
    seed: Seed = 0,
    grid: GridName = None,
    label: Label = "all",
    guidance: Guidance = 1.0,
    statistics: Statistics = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time; changes no pixel on a CPU.")] = 16,
    device: Device = "cpu",
    npz: Annotated[bool, typer.Option("--npz", help="One samples.npz, written at the end, instead of PNGs.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the images, grid.png and run.json.")] = Path("samples"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another run in that folder.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Draw images.

    An interrupted run goes on when the same command is given again.
    """
    chosen, chosen_grid = _pick("--solver", SOLVERS, solver), _pick_grid(grid)
    with _errors(debug):
        from .pictures import pixels
        from .runs import Run
        from .sampling import sample as draw
        from .sampling import unit_noise

        loaded = _load(model, device)
        denoiser = _conditioned(loaded, label, guidance)
        chosen = _informed({solver: chosen}, statistics, loaded, label, guidance)[solver]
        settings = {
            "model": model, "weights": loaded.fingerprint, "network": _digest(loaded.network),
            "schedule": repr(loaded.schedule), "classes": list(loaded.classes),
            "solver": solver, "solver_options": repr(chosen),
            "nfe": nfe, "n": n, "seed": seed, "grid": grid, "label": label, "guidance": guidance, "device": device,
            "format": "npz" if npz else "png",
            "statistics": [hashlib.sha256(path.read_bytes()).hexdigest() for path in statistics or []],
            "versions": _versions(),
        }  # fmt: skip
        run = Run(out, settings, npz, overwrite)

        def images(seeds: range) -> Tensor:
            noise = unit_noise(seeds, loaded.shape, device=device)
            return draw(
                denoiser(seeds), noise, nfe=nfe, solver=chosen, schedule=loaded.schedule, grid=chosen_grid, seeds=seeds
            )

        found = run.made
        record = run.complete() or _fill(run, range(seed, seed + n), batch_size, lambda seeds: pixels(images(seeds)))
    if as_json:
        typer.echo(json.dumps({**record, "out": str(out)}))
    if record["status"] == "interrupted":
        _say(f"interrupted: {run.made} of {_count(n, 'image')} in {out}; the same command goes on from there")
        raise typer.Exit(EXIT_FAILED)
    drawn = f"{n - found} drawn now, {record['images_per_second']:.1f} a second" if found < n else "all from before"
    _say(f"{_count(n, 'image')} in {out}, {drawn}; the sheet is {out / 'grid.png'}")


@app.command()
def compare(
    model: Model = DEFAULT_MODEL,
    solvers: Annotated[str, typer.Option(help=f"Comma-separated: {', '.join(SOLVERS)}")] = (
        "evodiff,ipndm-4,unipc-3,dpmpp-2m,ddim"
    ),
    nfe: Annotated[str, typer.Option(help="Comma-separated budgets.")] = "5,8,10,15",
    n: Annotated[int, typer.Option(min=1, help="Images per cell; four of them are drawn.")] = 16,
    seed: Seed = 0,
    grid: GridName = None,
    label: Label = "all",
    guidance: Guidance = 1.0,
    statistics: Statistics = None,
    device: Device = "cpu",
    out: Annotated[Path, typer.Option(help="The picture, a PNG.")] = Path("compare.png"),
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Compare solvers at several budgets, from the same noise.

    The picture has solvers in rows and budgets in columns and, beneath, their distance to the converged solution.
    """
    chosen = {name: _pick("--solvers", SOLVERS, name) for name in map(str.strip, solvers.split(","))}
    budgets, chosen_grid = _budgets(nfe), _pick_grid(grid)
    if out.suffix.lower() != ".png":
        raise typer.BadParameter(f"{str(out)!r} must end in .png", param_hint="--out")
    with _errors(debug):
        from .bench.compare import CONVERGED_NFE, converged
        from .bench.compare import compare as measure
        from .files import write_atomically
        from .pictures import Cell, comparison, pixels, sheet
        from .sampling import plan, unit_noise

        loaded = _load(model, device)
        seeds = range(seed, seed + n)
        conditioned = _conditioned(loaded, label, guidance)(seeds)
        chosen = _informed(chosen, statistics, loaded, label, guidance)
        _check_out(out)
        for each, budget in product(chosen.values(), budgets):  # what cannot be planned is told before the long run
            plan(loaded.schedule, each, nfe=budget, grid=chosen_grid)
        noise = unit_noise(seeds, loaded.shape, device=device)
        with _progress("comparing", CONVERGED_NFE + len(chosen) * sum(budgets), "calls") as advance:

            def denoiser(x: Tensor, t: float) -> Tensor:
                advance(1)
                return conditioned(x, t)

            started = time.perf_counter()
            exact = converged(denoiser, noise, loaded.schedule)
            exact_seconds = time.perf_counter() - started
            results = list(measure(denoiser, noise, loaded.schedule, chosen, budgets, exact, chosen_grid, seeds))

        def picture(images: Tensor) -> Any:
            return sheet(pixels(images[:SHOWN]), columns=SHOWN)

        rows = {
            name: [Cell(picture(r.images), r.rmse, r.seconds, r.calls) for r in results if r.solver == name]
            for name in chosen
        }
        title = f"{Path(model).name}, {_count(n, 'image')} from seed {seed}, guidance {guidance:g}"
        note = f"RMSE to the converged solution, which took {exact_seconds:.1f} s and {CONVERGED_NFE} calls"
        columns = [_count(budget, "call") for budget in budgets]
        write_atomically(out, comparison(title, columns, rows, picture(exact), note))
    if as_json:
        fields = ("solver", "nfe", "rmse", "seconds", "calls")
        cells = [{field: getattr(result, field) for field in fields} for result in results]
        facts = {
            "model": model, "n": n, "seed": seed, "guidance": guidance, "label": label, "grid": grid, "device": device,
        }  # fmt: skip
        typer.echo(json.dumps({"out": str(out), **facts, "versions": _versions(), "cells": cells}))
    else:
        table = Table("solver", *columns, title=Text(f"{title}\nRMSE to the converged solution, and seconds"))
        for name, row in rows.items():
            table.add_row(name, *(f"{cell.rmse:.4f}  {cell.seconds:.2f} s" for cell in row))
        Console().print(table)
    _say(f"the picture is {out}")


@app.command()
def models(as_json: AsJson = False) -> None:
    """List what can be loaded, and how."""
    from .adapters import packaged_models

    packaged = packaged_models()
    if as_json:
        typer.echo(json.dumps(packaged))
        return
    folder = "a diffusers UNet2DModel with EDM preconditioning: config.json, safetensors, fewstep.json"
    for name, summary in {**packaged, "FOLDER": folder}.items():
        typer.echo(f"{name:12}{summary}")
    typer.echo("\nLoad one by --model NAME or, in Python, fewstep.adapters.load_model(NAME).")


Data = Annotated[str, typer.Option(help="Training images: an npz file, or a name on the Hugging Face hub.")]
StatisticsFile = Annotated[Path, typer.Option("--out", help="The file, safetensors.")]
Points = Annotated[int, typer.Option(min=2, help="Noise levels, evenly in log-SNR.")]
Samples = Annotated[int, typer.Option(min=2, help="Noisy images at each; more matter more than points.")]
StatisticsSeed = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Of the choice of images, and of the noise.")]


@estimate.command()
def ems(
    out: StatisticsFile,
    data: Data = CIFAR10,
    model: Model = DEFAULT_MODEL,
    label: EstimateLabel = "all",
    guidance: Guidance = 1.0,
    points: Annotated[int, typer.Option(min=8, help="Noise levels, evenly in log-SNR, that are differenced.")] = 120,
    samples: Samples = 1024,
    probes: Annotated[int, typer.Option(min=1, help="Random signs for each image.")] = 1,
    seed: StatisticsSeed = 0,
    device: Device = "cpu",
    debug: Debug = False,
) -> None:
    """Estimate the statistics of DPM-Solver-v3: about six calls for each point and sample."""
    with _errors(debug):
        from .statistics import estimate_ems

        _estimate(estimate_ems, out, data, model, label, guidance, device, points, samples, seed, probes=probes)


@estimate.command()
def gamma(
    out: StatisticsFile,
    data: Data = CIFAR10,
    model: Model = DEFAULT_MODEL,
    label: EstimateLabel = "all",
    guidance: Guidance = 1.0,
    points: Points = 120,
    samples: Samples = 1024,
    seed: StatisticsSeed = 0,
    device: Device = "cpu",
    debug: Debug = False,
) -> None:
    """Estimate Gamma of Analytic-DPM: one call for each point and sample."""
    with _errors(debug):
        from .statistics import estimate_gamma

        _estimate(estimate_gamma, out, data, model, label, guidance, device, points, samples, seed)


def _estimate(
    estimator: Callable[..., Any],
    out: Path,
    data: str,
    model: str,
    label: str,
    guidance: float,
    device: str,
    points: int,
    samples: int,
    seed: int,
    **options: int,
) -> None:
    from .bench.images import load_images, resized, to_unit_range

    if label not in ("all", "none"):
        raise typer.BadParameter(f"{label!r} must be 'all' or 'none'", param_hint="--label")
    _check_out(out)
    loaded = _load(model, device)
    pixels, labels = load_images(data)
    if label == "none" or not loaded.classes:
        labels = None
    elif labels is None:
        raise typer.BadParameter(f"the images of {data} have no classes: use --label none", param_hint="--label")
    if labels is None and guidance != 1:
        raise typer.BadParameter(f"{guidance:g} needs classes", param_hint="--guidance")
    images = resized(to_unit_range(pixels), loaded.shape[-1]).to(device)
    denoiser = loaded if labels is None else lambda chosen: loaded.conditioned(chosen, guidance)
    with _progress("estimating", points, "points") as advance:
        shown = 0

        def report(done: int, total: int) -> None:
            nonlocal shown
            now = points * done // total
            advance(now - shown)
            shown = now

        found = estimator(
            denoiser,
            loaded.schedule,
            images,
            labels=labels,
            points=points,
            samples=samples,
            seed=seed,
            fingerprint=_subject(loaded, label, guidance),
            progress=report,
            **options,
        )
    found.save(out)
    _say(f"{found!r} in {out}: give it to a solver by --statistics")


def _subject(model: EDMModel, label: str, guidance: float) -> str:
    """What statistics are of: the model, with the classes of its images or without, and the guidance."""
    classes = "no classes" if label == "none" or not model.classes else "classes"
    return f"{model.fingerprint}, {classes}, guidance {guidance:g}"


def _informed(
    solvers: dict[str, Solver], files: list[Path] | None, model: EDMModel, label: str, guidance: float
) -> dict[str, Solver]:
    """The solvers, those that need statistics with the ones that the files hold; the table's are stand-ins."""
    from .statistics import load_statistics

    subject = _subject(model, label, guidance)
    found = [load_statistics(path, schedule=model.schedule, fingerprint=subject) for path in files or []]
    informed, used = {}, set()
    for name, solver in solvers.items():
        kind = type(getattr(solver, "statistics", None))
        fitting = [each for each in found if type(each) is kind]
        if kind is not type(None) and len(fitting) != 1:
            command = f"fewstep estimate {kind.__name__.lower()} --out FILE"
            raise typer.BadParameter(f"{name} needs one file of {kind.__name__}: {command}", param_hint="--statistics")
        informed[name] = dataclasses.replace(solver, statistics=fitting[0]) if fitting else solver  # type: ignore[type-var]
        used |= set(map(id, fitting))
    if len(used) < len(found):
        raise typer.BadParameter("holds statistics that no solver asked for", param_hint="--statistics")
    return informed


@bench.command()
def numerics(out: Page = None, debug: Debug = False) -> None:
    """Measure the order of convergence of every solver, and what the choices in the code rest on."""
    with _errors(debug):
        from .bench.numerics import page

        _write_page(out, lambda: page(_load(DEFAULT_MODEL, "cpu"), _say))


@bench.command()
def ablation(model: Model = DEFAULT_MODEL, out: Page = None, debug: Debug = False) -> None:
    """Measure every iteration of the EVODiff papers, on exact problems and on a model."""
    with _errors(debug):
        from .bench.ablation import page

        _write_page(out, lambda: page(_load(model, "cpu"), _say))


@bench.command()
def overhead(out: Page = None, debug: Debug = False) -> None:
    """Time the solvers themselves, with a free denoiser, beside diffusers' schedulers in the same run."""
    with _errors(debug):
        from .bench.overhead import page
        from .integrations.diffusers import EVODiffScheduler

        _write_page(out, lambda: page({"EVODiffScheduler": EVODiffScheduler}))


@bench.command()
def levels(model: Model = DEFAULT_MODEL, out: Page = None, debug: Debug = False) -> None:
    """Measure what noise levels are worth to the scheduler for diffusers, on the schedules of well-known models."""
    with _errors(debug):
        from .bench.levels import page
        from .integrations.diffusers import EVODiffScheduler

        _write_page(out, lambda: page(_load(model, "cpu"), EVODiffScheduler, _say))


@bench.command()
def variance(data: Data = CIFAR10, model: Model = DEFAULT_MODEL, out: Page = None, debug: Debug = False) -> None:
    """Measure what each part of EVODiff's default is worth, on the development problems."""
    with _errors(debug):
        from .bench.variance import page

        _write_page(out, lambda: page(_source(data, model, "dev"), _say))


@bench.command()
def quality(
    results: Annotated[Path, typer.Option(help="Folder of the measurements; an interrupted run goes on from there.")],
    data: Data = CIFAR10,
    model: Model = DEFAULT_MODEL,
    split: Annotated[str, typer.Option(help="dev, to develop solvers on, or report.")] = "report",
    quick: Annotated[bool, typer.Option("--quick", help="A reduced table, in minutes; the whole takes hours.")] = False,
    problem: Annotated[list[str] | None, typer.Option(help="Measure this one only; may be repeated.")] = None,
    again: Annotated[list[str] | None, typer.Option(help="Measure this solver anew; may be repeated.")] = None,
    out: Page = None,
    debug: Debug = False,
) -> None:
    """Measure EVODiff's default beside the best peer at its best grid, on problems whose solution is known."""
    from .bench.problems import PROBLEMS, SPLITS
    from .bench.quality import FULL, QUICK, cells, fill
    from .bench.quality_ratios import OURS, PUBLISHED

    plan = QUICK if quick else FULL
    _pick("--split", dict(SPLITS), split)
    for name in problem or []:
        _pick("--problem", {known: PROBLEMS[known] for known in plan.problems}, name)
    for name in again or []:
        _pick("--again", dict.fromkeys((OURS, PUBLISHED, *plan.peers)), name)
    with _errors(debug):
        from .bench.quality_page import page

        if out is not None:
            _check_out(out)
        folder = results / f"{split}-{plan.name}"
        fill(_source(data, model, split), folder, plan, problem or plan.problems, _say, again or ())
        command = "make quality-quick" if quick else "make quality"
        _write_page(out, lambda: page(cells(folder, plan), plan, split, command))


def _source(data: str, model: str, split: str) -> Source:
    """What the problems of the bench are made of."""
    from .bench.images import load_images
    from .bench.problems import SPLITS, Source

    pixels, labels = load_images(data)
    if labels is None:
        raise typer.BadParameter(f"the images of {data} have no classes, which the problems need", param_hint="--data")
    return Source(pixels, labels, SPLITS[split], lambda: _load(model, "cpu"))


def _write_page(out: Path | None, page: Callable[[], str]) -> None:
    from .files import write_atomically

    if out is None:
        typer.echo(page())
    else:
        _check_out(out)
        write_atomically(out, page().encode())


def _fill(run: Run, seeds: range, batch_size: int, draw: Callable[[range], np.ndarray]) -> dict[str, Any]:
    """Draw the images that are missing, up to the end or an interruption, and return the run's record."""
    found, status = run.made, "done"
    started = time.perf_counter()
    try:
        run.write_record("running")
        with _progress("sampling", len(seeds), "images", done=found) as advance:
            for first in range(found, len(seeds), batch_size):
                part = seeds[first : first + batch_size]
                run.add(draw(part))
                advance(len(part))
    except KeyboardInterrupt:
        status = "interrupted"
    except BaseException:
        run.finish("failed")
        raise
    seconds = time.perf_counter() - started
    rate = (run.made - found) / seconds
    return run.finish(status, found=found, seconds=round(seconds, 3), images_per_second=round(rate, 3))


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)


def _say(text: str) -> None:
    log.print(Text(text), soft_wrap=True)


@contextmanager
def _errors(debug: bool) -> Iterator[None]:
    """One line and a remedy on stderr, exit code 1; the traceback with --debug."""
    try:
        yield
    except (typer.Exit, typer.BadParameter):
        raise
    except Exception as error:
        if debug:
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if not isinstance(error, (ValueError, TypeError, OSError, ImportError, RuntimeError)):
            reason = f"{type(error).__name__}: {reason} (unexpected; --debug shows where)"
        log.print(Text.assemble(("error: ", "red"), reason), soft_wrap=True)
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


def _check_out(out: Path) -> None:
    from .files import check_writable

    if out.is_dir():
        raise IsADirectoryError(f"cannot write {out}, it is a folder: choose another --out")
    check_writable(out.parent)


def _load(model: str, device: str) -> EDMModel:
    from .adapters import load_model

    try:
        torch.device(device)
    except RuntimeError as error:
        raise typer.BadParameter(
            f"{device!r} is not a device; choose cpu, cuda, mps ...", param_hint="--device"
        ) from error
    return load_model(model, device=device, batch=NETWORK_BATCH)


def _conditioned(model: EDMModel, label: str, guidance: float) -> Callable[[Iterable[int]], Denoiser]:
    """From the seeds of images to the denoiser of their classes."""
    names = list(model.classes)
    if not math.isfinite(guidance):
        raise typer.BadParameter(f"{guidance} must be finite", param_hint="--guidance")
    if label == "none" or (label == "all" and not names):
        if guidance != 1:
            raise typer.BadParameter(f"{guidance:g} needs a class: give a --label, or 1", param_hint="--guidance")
        return lambda seeds: model
    if label == "all":
        return lambda seeds: model.conditioned([seed % len(names) for seed in seeds], guidance)
    if label in names:
        number = names.index(label)
    elif label.isdecimal() and int(label) < len(names):
        number = int(label)
    else:
        known = f"'none', 'all', {', '.join(names)}" if names else "'none', it has no classes"
        raise typer.BadParameter(f"{label!r} is not a class of this model; choose from {known}", param_hint="--label")
    return lambda seeds: model.conditioned(number, guidance)


def _digest(network: Any) -> str:
    """Of the configuration of a network of diffusers, without diffusers' own notes on it."""
    facts = {key: value for key, value in network.config.items() if not key.startswith("_")}
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


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
