"""`fewstep bench`: which solver and how few calls, on a model of the user's."""

from __future__ import annotations

import dataclasses
import json
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import ALL_GRIDS, ALL_SOLVERS, AsJson, Debug, path
from .parse import pick
from .show import count, errors, progress, say

if TYPE_CHECKING:
    from ..bench.plan import Plan

app = typer.Typer(help="Measure solvers on a model: run, report, recommend.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="The folder of a `fewstep bench run`.")]
Out = typer.Option("--out", parser=path, metavar="<path>", help="The folder of what comes of it.")
PLAN = "bench.json"


@app.command()
def run(
    config: Annotated[Path | None, typer.Argument(help="A bench.toml; options change single keys of it.")] = None,
    preset: Annotated[str | None, typer.Option(help="An experiment of the papers: `fewstep bench presets`.")] = None,
    model: Annotated[str | None, typer.Option(help="Comma-separated: packaged, a folder, or module:function.")] = None,
    solvers: Annotated[str | None, typer.Option(help=f"Comma-separated: {ALL_SOLVERS}.")] = None,
    grids: Annotated[str | None, typer.Option(help=f"Comma-separated: own, {ALL_GRIDS}.")] = None,
    nfe: Annotated[str | None, typer.Option(help="Comma-separated budgets, in calls.")] = None,
    guidance: Annotated[
        str | None, typer.Option(help="Comma-separated scales; 1 is none, of ADM's classifier 0.")
    ] = None,
    n: Annotated[int | None, typer.Option(help="Images in each cell; more may be added later.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the first image.")] = None,
    batch: Annotated[int | None, typer.Option(help="Images at a time, and in a file.")] = None,
    converged: Annotated[int | None, typer.Option(help="Calls of the solution that errors are to; 0: none.")] = None,
    metrics: Annotated[str | None, typer.Option(help="Comma-separated: frechet, rmse, gain, isc, clip ...")] = None,
    extractor: Annotated[str | None, typer.Option(help="classifier, inception, a file or module:function.")] = None,
    weights: Annotated[str | None, typer.Option(help="The file of Inception's weights.")] = None,
    reference: Annotated[str | None, typer.Option(help="An npz file of images, or of mu and sigma.")] = None,
    prompts: Annotated[str | None, typer.Option(help="A text file of a prompt a line, for models of text.")] = None,
    clip: Annotated[str | None, typer.Option(help="The folder of a CLIP, for the metrics clip and aesthetic.")] = None,
    aesthetic: Annotated[str | None, typer.Option(help="The file of LAION's aesthetic score.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps ...")] = None,
    shard: Annotated[str, typer.Option(help="The i-th of n independent jobs, like 2/3; then `bench merge`.")] = "1/1",
    overwrite: Annotated[str, typer.Option(help="Comma-separated solvers whose images are drawn anew.")] = "",
    out: Annotated[Path, Out] = Path("bench"),
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure models x solvers x grids x calls x guidance. An interrupted run goes on when it is given again."""
    job, jobs = _shard(shard)
    with errors(debug):
        from ..bench.draw import Worker, draw
        from ..bench.measure import Judge, measure
        from ..bench.plan import CONVERGED, Plan
        from ..bench.presets import load_preset
        from ..files import check_writable

        given = Plan.keys(config) if config is not None else {}
        lists = {"models": (model, str), "solvers": (solvers, str), "grids": (grids, str), "calls": (nfe, int),
                 "guidance": (guidance, float), "metrics": (metrics, str)}  # fmt: skip
        for key, (text, kind) in lists.items():
            if text is not None:
                given[key] = _listed(key, text, kind)
        single = {"n": n, "seed": seed, "batch": batch, "converged": converged, "extractor": extractor,
                  "weights": weights, "reference": reference, "prompts": prompts,
                  "clip": clip, "aesthetic": aesthetic, "device": device}  # fmt: skip
        given |= {key: value for key, value in single.items() if value is not None}
        if preset is not None:
            given = load_preset(preset).filled(preset, given)
        plan = Plan.of(given)
        anew = _listed("overwrite", overwrite, str) if overwrite else []
        for name in anew:
            pick("--overwrite", [*plan.candidates(), CONVERGED], name)
        worker = Worker.here(plan.device, job - 1, jobs)
        judge = Judge(plan, worker.device) if worker.leads else None
        check_writable(out)
        quiet: Any = nullcontext(lambda calls: None)

        @cache
        def record() -> None:
            """Beside what is drawn: a run that is refused leaves nothing, and what was there as it was."""
            if worker.leads:
                _keep(plan, out)

        try_on = judge.try_on if judge else lambda subject: None
        try:
            with progress("drawing", worker.calls(plan), "calls") if worker.leads else quiet as advance:

                def drawn(calls: int) -> None:
                    record()
                    advance(calls)

                draw(plan, out, worker, drawn, anew, try_on)
                record()  # of a worker without a share, too
        except KeyboardInterrupt as interruption:
            raise KeyboardInterrupt(f"the same command goes on from what is in {out}") from interruption
        worker.wait()
        if judge is None:
            return
        rows = measure(plan, out, judge, say) if jobs == 1 else []
    if jobs > 1:
        say(f"shard {shard} is drawn; when all are: fewstep bench merge {out} ... --out FOLDER")
    _tell(plan, rows, out, as_json)


@app.command()
def presets(as_json: AsJson = False) -> None:
    """List the experiments of the EVODiff papers, and the files that each needs."""
    from ..bench.presets import presets as known

    found = known()
    if as_json:
        typer.echo(json.dumps({name: dataclasses.asdict(preset) for name, preset in found.items()}))
        return
    for name, preset in found.items():
        typer.echo(f"{name}\n  {preset.title}")
        for key, what in preset.files.items():
            typer.echo(f"    --{'model' if key == 'models' else key}: {what}")


@app.command()
def merge(
    folders: Annotated[list[Path], typer.Argument(help="Folders of the shards of one bench, or the one they share.")],
    out: Annotated[Path, Out],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Bring the shards of a bench together, check that nothing is missing, and measure."""
    with errors(debug):
        from ..bench.measure import Judge, measure
        from ..bench.merge import bring_together

        plan = bring_together([_plan(folder) for folder in folders], folders, out)
        _keep(plan, out)
        rows = measure(plan, out, Judge(plan, plan.device), say)
    _tell(plan, rows, out, as_json)


@app.command()
def report(
    folder: Folder,
    out: Annotated[Path, Out],
    title: Annotated[str, typer.Option(help="Of the page.")] = "Solvers compared",
    debug: Debug = False,
) -> None:
    """Write what a run found: one HTML page with plots and pictures, and the table as Markdown and CSV."""
    with errors(debug):
        from ..bench.report import write_report
        from ..files import check_writable

        plan, rows = _plan(folder), _rows(folder)
        check_writable(out)
        write_report(plan, rows, folder, out, title)
    say(f"the page is {out / 'index.html'}")


@app.command()
def recommend(
    folder: Folder,
    calls: Annotated[int | None, typer.Option(min=1, help="At most so many.")] = None,
    milliseconds: Annotated[float | None, typer.Option(min=0, help="At most so many an image, as measured.")] = None,
    by: Annotated[str | None, typer.Option(help="The metric; the Fréchet distance if there is one, else RMSE.")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Name the best setting found for each model and guidance scale, and print the lines that use it."""
    with errors(debug):
        from ..bench.recommend import FRONT_ENDS, best, lines
        from ..bench.report import COLUMNS, parts_of

        rows = _rows(folder)
        metric = by or ("frechet" if any("frechet" in row for row in rows) else "rmse")
        found = {part: best(of, metric, calls, milliseconds) for part, of in parts_of(rows)}
        if as_json:
            typer.echo(json.dumps([{**row, "lines": lines(row)} for row in found.values()]))
            return
        for part, row in found.items():
            value = COLUMNS[metric].show(row[metric])
            typer.echo(f"{part}: {row['solver']}, {count(row['calls'], 'call')} ({COLUMNS[metric].title} {value})")
            told = lines(row)
            for where in FRONT_ENDS:
                text = told.get(where, "none, it does not have this solver with these levels")
                typer.echo(f"\n{where}:\n" + "".join(f"    {line}\n" for line in text.splitlines()), nl=False)


def _rows(folder: Path) -> list[dict[str, Any]]:
    from ..bench.measure import read_rows

    rows = read_rows(folder)
    if not rows:
        raise ValueError(f"{folder} has no rows yet: let `fewstep bench run` end, or merge its shards")
    return rows


def _tell(plan: Plan, rows: list[dict[str, Any]], out: Path, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"out": str(out), "rows": rows}))
    elif rows:
        from ..bench.report import as_markdown, with_published

        typer.echo(as_markdown(with_published(plan, rows)))
    if rows:
        say(f"{count(len(rows), 'row')} in {out}; a page of them: fewstep bench report {out} --out FOLDER")


def _plan(folder: Path) -> Plan:
    from ..bench.plan import Plan

    path = folder / PLAN
    if not path.exists():
        raise FileNotFoundError(f"{folder} is not of a bench, it has no {PLAN}: give the --out of a run")
    try:
        given = json.loads(path.read_bytes())
        if not isinstance(given, dict):
            raise ValueError("it holds no keys")
        return Plan.of(given)
    except ValueError as error:
        raise ValueError(f"{path} cannot be used ({error}): give the `bench run` again, it writes it anew") from error


def _keep(plan: Plan, folder: Path) -> None:
    """For `_plan`."""
    from ..files import write_atomically

    write_atomically(folder / PLAN, (json.dumps(plan.record(), indent=1) + "\n").encode())


def _listed(key: str, text: str, kind: type) -> list[Any]:
    try:
        return [kind(part.strip()) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{key} must be {kind.__name__} numbers, separated by commas; got {text!r}") from error


def _shard(text: str) -> tuple[int, int]:
    parts = text.split("/")
    if len(parts) == 2 and all(part.isdecimal() for part in parts) and 1 <= int(parts[0]) <= int(parts[1]):
        return int(parts[0]), int(parts[1])
    raise typer.BadParameter(f"{text!r} must be like 2/3, the second of three", param_hint="--shard")
