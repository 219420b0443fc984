"""`fewstep sample`: images from a model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..models import DEFAULT_MODEL
from .options import ALL_SOLVERS, AsJson, Debug, Device, GridName, Guidance, Label, Model, Plan, Seed, Statistics, path
from .parse import conditioned, informed, load, pick_grid, pick_solvers
from .show import count, errors, progress, say

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ..runs import Run


def sample(
    model: Model = DEFAULT_MODEL,
    solver: Annotated[str, typer.Option(help=ALL_SOLVERS + ".")] = "evodiff",
    nfe: Annotated[int, typer.Option(min=1, help="Calls of the model for each image.")] = 10,
    n: Annotated[int, typer.Option(min=1, help="How many images.")] = 64,
    seed: Seed = 0,
    grid: GridName = None,
    label: Label = "all",
    guidance: Guidance = 1.0,
    statistics: Statistics = None,
    plan: Plan = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time; changes no pixel on a CPU.")] = 16,
    device: Device = "cpu",
    npz: Annotated[bool, typer.Option("--npz", help="One samples.npz, written at the end, instead of PNGs.")] = False,
    out: Annotated[
        Path, typer.Option(parser=path, metavar="<path>", help="Folder for the images, grid.png and run.json.")
    ] = Path("samples"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another run in that folder.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Draw images.

    An interrupted run goes on when the same command is given again.
    """
    with errors(debug):
        from ..pictures import pixels
        from ..runs import Run, versions
        from ..sampling import sample as draw
        from ..sampling import unit_noise

        picked, chosen_grid = pick_solvers("--solver", [solver]), pick_grid(grid)
        loaded = load(model, device)
        denoiser = conditioned(loaded, label, guidance)
        chosen = informed(picked, statistics, plan, loaded, label, guidance)[solver]
        settings = {
            "model": model, "weights": loaded.fingerprint, "network": _digest(loaded.network),
            "schedule": repr(loaded.schedule), "classes": list(loaded.classes),
            "solver": solver, "solver_options": repr(chosen),
            "nfe": nfe, "n": n, "seed": seed, "grid": grid, "label": label, "guidance": guidance, "device": device,
            "format": "npz" if npz else "png",
            "statistics": [hashlib.sha256(path.read_bytes()).hexdigest() for path in statistics or []],
            "plan": None if plan is None else hashlib.sha256(plan.read_bytes()).hexdigest(),
            "versions": versions(),
        }  # fmt: skip

        def images(seeds: list[int]) -> Tensor:
            noise = unit_noise(seeds, loaded.shape, device=device)
            return draw(
                denoiser(seeds), noise, nfe=nfe, solver=chosen, schedule=loaded.schedule, grid=chosen_grid, seeds=seeds
            )

        with Run(out, settings, npz, overwrite) as run:
            if run.damaged:
                say(f"damaged, made again: {', '.join(run.damaged)}")
            found = run.made
            record = run.complete() or _fill(run, seed, batch_size, lambda seeds: pixels(images(seeds)))
    if as_json:
        typer.echo(json.dumps({**record, "out": str(out)}))
    if record["status"] == "interrupted":
        raise KeyboardInterrupt(f"{run.made} of {count(n, 'image')} in {out}; the same command goes on from there")
    drawn = f"{n - found} drawn now, {record['images_per_second']:.1f} a second" if found < n else "all from before"
    say(f"{count(n, 'image')} in {out}, {drawn}; the sheet is {out / 'grid.png'}")


def _fill(run: Run, seed: int, batch_size: int, draw: Callable[[list[int]], np.ndarray]) -> dict[str, Any]:
    """Draw the images that are missing, up to the end or an interruption, and return the run's record."""
    found, status = run.made, "done"
    started = time.perf_counter()
    try:
        with progress("sampling", run.settings["n"], "images", done=found) as advance:
            while run.missing:
                part = run.missing[:batch_size]
                run.add(draw([seed + i for i in part]))
                advance(len(part))
    except KeyboardInterrupt:
        status = "interrupted"
    except BaseException:
        with suppress(OSError):  # of which there was one, most likely
            run.finish("failed")
        raise
    seconds = time.perf_counter() - started
    rate = (run.made - found) / seconds
    return run.finish(status, found=found, seconds=round(seconds, 3), images_per_second=round(rate, 3))


def _digest(network: Any) -> str:
    """Of the configuration of a network, without diffusers' own notes on it."""
    config = dataclasses.asdict(network.config) if dataclasses.is_dataclass(network.config) else network.config
    facts = {key: value for key, value in config.items() if not key.startswith("_")}
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
