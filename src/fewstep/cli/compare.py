"""`fewstep compare`: solvers side by side, from the same noise."""

from __future__ import annotations

import json
import time
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..models import DEFAULT_MODEL
from ..prompts import digest
from .options import (
    ALL_SOLVERS,
    AsJson,
    Debug,
    Device,
    GridName,
    Guidance,
    Label,
    Model,
    Negative,
    Plan,
    Prompt,
    Prompts,
    Seed,
    Statistics,
    path,
)
from .parse import conditioned, informed, load, pick_budgets, pick_device, pick_grid, pick_prompts, pick_solvers
from .show import count, errors, progress, say

if TYPE_CHECKING:
    from torch import Tensor

SHOWN = 4  # images in a cell of the comparison


def compare(
    model: Model = DEFAULT_MODEL,
    solvers: Annotated[
        str, typer.Option(help=f"Comma-separated: {ALL_SOLVERS}.")
    ] = "evodiff,ipndm-4,unipc-3,dpmpp-2m,ddim",
    nfe: Annotated[str, typer.Option(help="Comma-separated budgets.")] = "5,8,10,15",
    n: Annotated[int, typer.Option(min=1, help="Images per cell; four of them are drawn.")] = 16,
    seed: Seed = 0,
    grid: GridName = None,
    label: Label = "all",
    prompt: Prompt = None,
    prompts: Prompts = None,
    negative: Negative = None,
    guidance: Guidance = 1.0,
    statistics: Statistics = None,
    plan: Plan = None,
    device: Device = "cpu",
    out: Annotated[Path, typer.Option(parser=path, metavar="<path>", help="The picture, a PNG.")] = Path("compare.png"),
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Compare solvers at several budgets, from the same noise.

    The picture has solvers in rows and budgets in columns and, beneath, their distance to the converged solution.
    """
    budgets = pick_budgets(nfe)
    if out.suffix.lower() != ".png":
        raise typer.BadParameter(f"{str(out)!r} must end in .png", param_hint="--out")
    with errors(debug):
        from ..bench.compare import CONVERGED_NFE, converged
        from ..bench.compare import compare as measure
        from ..files import check_file, write_atomically
        from ..pictures import Cell, comparison, pixels, sheet
        from ..runs import versions
        from ..sampling import plan as planned
        from ..sampling import unit_noise

        picked, chosen_grid = pick_solvers("--solvers", map(str.strip, solvers.split(","))), pick_grid(grid)
        texts, device = pick_prompts(prompt, prompts), pick_device(device)
        loaded = load(model, device)
        seeds = range(seed, seed + n)
        model_denoiser = conditioned(loaded, label, guidance, texts, negative, seed)(seeds)
        chosen = informed(picked, statistics, plan, loaded, label, guidance, texts, negative)
        check_file(out)
        for each, budget in product(chosen.values(), budgets):  # what cannot be planned is told before the long run
            planned(loaded.schedule, each, nfe=budget, grid=chosen_grid)
        noise = unit_noise(seeds, loaded.shape, device=device)
        with progress("comparing", CONVERGED_NFE + len(chosen) * sum(budgets), "calls") as advance:

            def denoiser(x: Tensor, t: float) -> Tensor:
                advance(1)
                return model_denoiser(x, t)

            started = time.perf_counter()
            exact = converged(denoiser, noise, loaded.schedule)
            exact_seconds = time.perf_counter() - started
            results = list(measure(denoiser, noise, loaded.schedule, chosen, budgets, exact, chosen_grid, seeds))

        def picture(images: Tensor) -> Any:
            shown = images[:SHOWN]
            return sheet(pixels(loaded.decode(shown) if hasattr(loaded, "decode") else shown), columns=SHOWN)

        rows = {
            name: [Cell(picture(r.images), r.rmse, r.seconds, r.calls) for r in results if r.solver == name]
            for name in chosen
        }
        title = f"{Path(model).name}, {count(n, 'image')} from seed {seed}, guidance {guidance:g}"
        note = f"RMSE to the converged solution, which took {exact_seconds:.1f} s and {CONVERGED_NFE} calls"
        columns = [count(budget, "call") for budget in budgets]
        write_atomically(out, comparison(title, columns, rows, picture(exact), note))
    if as_json:
        fields = ("solver", "nfe", "rmse", "seconds", "calls")
        cells = [{field: getattr(result, field) for field in fields} for result in results]
        facts = {
            "model": model, "n": n, "seed": seed, "guidance": guidance, "label": label, "grid": grid, "device": device,
            "prompts": digest(texts, negative),
        }  # fmt: skip
        typer.echo(
            json.dumps(
                {"out": str(out), **facts, "versions": versions(getattr(loaded, "network", None)), "cells": cells}
            )
        )
    else:
        table = Table("solver", *columns, title=Text(f"{title}\nRMSE to the converged solution, and seconds"))
        for name, row in rows.items():
            table.add_row(name, *(f"{cell.rmse:.4f}  {cell.seconds:.2f} s" for cell in row))
        Console().print(table)
    say(f"the picture is {out}")
