"""`fewstep tune`: a plan that is measured on a model."""

from __future__ import annotations

import json
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..models import DEFAULT_MODEL
from .options import (
    AsJson,
    Debug,
    Device,
    Guidance,
    Label,
    Model,
    Negative,
    OverwriteFile,
    Prompt,
    Prompts,
    Seed,
    path,
)
from .parse import conditioned, load, pick_budgets, pick_device, pick_prompts, subject
from .show import Reached, errors, peak, progress, say

if TYPE_CHECKING:
    from ..solvers import Tuned

FEWEST = 4


def tune(
    out: Annotated[Path, typer.Option(parser=path, metavar="<path>", help="The plan, a JSON file.")],
    model: Model = DEFAULT_MODEL,
    nfe: Annotated[str, typer.Option(help="Comma-separated budgets, of 2 calls or more.")] = "5,6,8,10",
    n: Annotated[int, typer.Option(min=FEWEST, help="How many samples: half to tune on, half to report on.")] = 32,
    seed: Seed = 0,
    objective: Annotated[
        str, typer.Option(help="What counts: 'rmse', or 'details', which are sizes of differences too.")
    ] = "rmse",
    most: Annotated[int, typer.Option(min=1, help="Evaluations of a single sample that each budget may take.")] = 5000,
    label: Label = "all",
    prompt: Prompt = None,
    prompts: Prompts = None,
    negative: Negative = None,
    guidance: Guidance = 1.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples at a time.")] = 8,
    device: Device = "cpu",
    overwrite: OverwriteFile = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure a plan on a model: nodes and weights for each budget, and what they gain on seeds it was not tuned on.

    An interrupted one goes on when the same command is given again, a finished one is read. The plan is used by
    --solver tuned --plan FILE.
    """
    budgets = pick_budgets(nfe)
    if min(budgets) < 2:
        raise typer.BadParameter(f"{nfe!r} must be integers of at least 2, like 5,8,10", param_hint="--nfe")
    with errors(debug):
        from ..files import check_file
        from ..tuning import OBJECTIVES, cost
        from ..tuning import tune as measure

        if objective not in OBJECTIVES:
            raise typer.BadParameter(
                f"{objective!r} is not known; choose from {', '.join(OBJECTIVES)}", param_hint="--objective"
            )
        check_file(out)
        texts, device = pick_prompts(prompt, prompts), pick_device(device)
        loaded = load(model, device)
        denoiser = conditioned(loaded, label, guidance, texts, negative, seed)
        total = cost(sorted(set(budgets)), n, most)
        twice = ", each two of the network" if guidance != 1 else ""
        say(f"at most {total:,} evaluations of a sample{twice}")
        started = time.perf_counter()
        with progress("tuning", total, "samples") as advance, warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            reached = Reached(advance, total)
            try:
                found = measure(
                    denoiser,
                    loaded.schedule,
                    shape=loaded.shape,
                    nfe=budgets,
                    seeds=range(seed, seed + n),
                    objective=objective,  # type: ignore[arg-type]
                    by_seed=True,
                    most=most,
                    batch=batch_size,
                    device=device,
                    fingerprint=subject(loaded, label, guidance, texts, negative),
                    out=out,
                    overwrite=overwrite,
                    progress=reached,
                )
            except KeyboardInterrupt:
                raise KeyboardInterrupt(
                    f"{reached.units:,} evaluations are kept; the same command goes on from there"
                ) from None
    for warning in warned:
        say(f"warning: {warning.message}")
    evaluations = sum(each.evaluations for each in found.report)
    if as_json:
        outcomes = [each._asdict() for each in found.report]
        typer.echo(json.dumps({"out": str(out), "evaluations": evaluations, "report": outcomes, **found.facts}))
    else:
        Console().print(_table(found))
    took = f"{time.perf_counter() - started:.0f} s, {peak(device)}" if reached.units else "all from before"
    say(f"{evaluations:,} evaluations besides reference and report, {took}")
    better = [str(each.calls) for each in found.report if each.kept]
    if better:
        say(f"the plan for {', '.join(better)} calls is {out}: --solver tuned --plan {out}")
    else:
        say(f"nothing was gained: {out} holds the default")


def _table(found: Tuned) -> Table:
    table = Table(
        "calls", "default", "tuned", "ratio", "95 %", "evaluations", "kept",
        title="RMSE to the converged solution, seeds held out",
    )  # fmt: skip
    for each in found.report:
        kept = "yes" if each.kept else "no, the default runs"
        interval = f"{each.low:.2f} to {each.high:.2f}"
        values = (f"{each.default:.4g}", f"{each.tuned:.4g}", f"{each.ratio:.2f}", interval, f"{each.evaluations:,}")
        table.add_row(str(each.calls), *values, kept)
    return table
