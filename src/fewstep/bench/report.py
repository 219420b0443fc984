"""What a bench found, to be read: Markdown, CSV, and one HTML page that needs nothing but itself."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Callable, Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..files import write_atomically
from ..pictures import png, sheet
from ..table import GRIDS
from .draw import shards_of
from .markdown import table
from .measure import CALL
from .plan import CONVERGED, Cell, Plan
from .svg import COLOURS, chart

__all__ = ["COLUMNS", "as_markdown", "columns", "parts_of", "with_published", "write_report"]

Row = Mapping[str, Any]
SHOWN = 4  # images of a cell, two by two
LARGEST = 128  # pixels of a picture's side in the page; larger ones are thinned
STYLE = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")


class Column(NamedTuple):
    """A figure of the rows; `best` picks the best of its values, where there is a best."""

    title: str
    show: Callable[[float], str]
    best: Callable[[Sequence[float]], float] | None = min


COLUMNS: Mapping[str, Column] = {
    "frechet": Column("Fréchet", lambda v: f"{v:.2f}"),
    "published frechet": Column("published FID", lambda v: f"{v:.2f}", None),
    "rmse": Column("RMSE", lambda v: f"{v:.4f}"),
    "gain": Column("gain", lambda v: f"{v:.3f}", lambda values: min(values, key=lambda v: abs(v - 1))),
    "isc": Column("IS", lambda v: f"{v:.2f}", max),
    "published isc": Column("published IS", lambda v: f"{v:.2f}", None),
    "kid": Column("KID", lambda v: f"{v:.5f}"),
    "precision": Column("precision", lambda v: f"{v:.3f}", max),
    "recall": Column("recall", lambda v: f"{v:.3f}", max),
    "clip": Column("CLIP score", lambda v: f"{v:.2f}", max),
    "published clip": Column("published CLIP", lambda v: f"{v:.2f}", None),
    "aesthetic": Column("aesthetic", lambda v: f"{v:.2f}", max),
    "published aesthetic": Column("published aesthetic", lambda v: f"{v:.2f}", None),
    "milliseconds": Column("ms an image", lambda v: f"{v:.1f}", None),
    "memory": Column("peak MiB", lambda v: f"{v / 2**20:.0f}", None),
}


def columns(rows: Sequence[Row]) -> dict[str, Column]:
    """Those that the rows have, and the scores of the user's; the Fréchet distance by its title."""
    found = {key: column for key, column in COLUMNS.items() if any(key in row for row in rows)}
    titles = {row["measured by"]["frechet is"] for row in rows if "frechet" in row}
    if titles == {"FID"}:
        found["frechet"] = found["frechet"]._replace(title="FID")
    scores = {name for row in rows for name in row["measured by"]["scores"]}
    for name in sorted({*scores, *(f"published {each}" for each in scores)} & {key for row in rows for key in row}):
        found[name] = Column(name, lambda v: f"{v:.4g}", None)
    return found


def as_markdown(rows: Sequence[Row]) -> str:
    """The table, a part a model and guidance scale; the best of each budget in bold."""
    shown = columns(rows)
    head = ["solver", "calls", *(column.title for column in shown.values())]
    parts = [f"{part}\n\n{table(head, _lines(of, shown, '**{}**'))}" for part, of in parts_of(rows)]
    return "\n".join(parts)


def explained(rows: Sequence[Row], plan: Plan) -> list[str]:
    """What the columns are, and what reproduces them, a sentence each."""
    by, under = rows[0]["measured by"], rows[0]["drawn under"]
    told = []
    if by["frechet is"]:
        told.append(f"Fréchet: the {by['frechet is']}, to {by['reference']}; in the features of {by['extractor']}.")
        told.append("It is biased upwards, the more the fewer images: compare it at equal numbers only.")
    if "clip is" in by:
        told.append(f"CLIP score: 100 max(cos, 0) of the embeddings of image and prompt, by {by['clip is']}.")
    if "aesthetic is" in by:
        told.append(f"Aesthetic: LAION's score, by {by['aesthetic is']}.")
    if plan.converged:
        told.append(
            f"RMSE and gain: a pixel's distance to the converged solution of {plan.converged} calls from the same "
            "noise, and the contrast as a share of its contrast."
        )
    told.append(f"A call is {CALL}. Milliseconds: the median over batches of {plan.batch}, on {under['device']}.")
    told.append(f"{plan.n} images a row, of the seeds from {plan.seed} on.")
    kinds = {label(row): (row["drawn under"]["python"], row["drawn under"]["nodes"]) for row in rows}
    told += [f"{name}: {python}, steps {nodes}." for name, (python, nodes) in kinds.items()]
    for metric, by in plan.published.items():
        for name in by.keys() - {row["solver"] for row in rows}:
            figures = ", ".join(f"{value:g} at {calls}" for calls, value in by[name].items())
            told.append(f"Published besides ({metric}): {name}, {figures} calls.")
    told.append("Versions: " + ", ".join(f"{name} {version}" for name, version in under["versions"].items()) + ".")
    told.append(f"Fingerprint of the model: {under['fingerprint']}.")
    return told


def write_report(plan: Plan, rows: Sequence[Row], folder: Path, out: Path, title: str) -> None:
    """`results.md`, `results.csv` and `index.html` in `out`, of the rows and images of `folder`."""
    rows = with_published(plan, rows)
    told = explained(rows, plan)
    write_atomically(out / "results.csv", _csv(rows).encode())
    body = f"# {title}\n\n{as_markdown(rows)}\n" + "\n".join(f"- {line}" for line in told) + "\n"
    write_atomically(out / "results.md", body.encode())
    write_atomically(out / "index.html", _page(plan, rows, folder, title, told).encode())


def with_published(plan: Plan, rows: Sequence[Row]) -> list[Row]:
    """The rows, each with the figures that a paper has for it."""

    def figures(row: Row) -> dict[str, float]:
        known = {metric: by.get(row["solver"], {}).get(str(row["calls"])) for metric, by in plan.published.items()}
        return {f"published {metric}": value for metric, value in known.items() if value is not None}

    return [{**row, **figures(row)} for row in rows]


def parts_of(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """The rows of each model and guidance scale, under its name."""

    def part(row: Row) -> tuple[str, float]:
        return row["model"], row["guidance"]

    found = [(key, list(of)) for key, of in groupby(sorted(rows, key=part), part)]
    return [(f"{model}, guidance {guidance:g}", of) for (model, guidance), of in found]


def label(row: Row) -> str:
    """A solver, with its grid where it ran on one of several."""
    return f"{row['solver']} on {row['grid']}" if row["grid"] in GRIDS else str(row["solver"])


def _lines(rows: Sequence[Row], shown: Mapping[str, Column], bold: str) -> list[list[str]]:
    best: dict[tuple[str, int], float] = {}
    for key, column in shown.items():
        for calls in {row["calls"] for row in rows}:
            values = [row[key] for row in rows if key in row and row["calls"] == calls]
            if column.best and len(values) > 1:
                best[key, calls] = column.best(values)
    lines = []
    for row in rows:
        cells = []
        for key, column in shown.items():
            text = column.show(row[key]) if key in row else ""
            cells.append(bold.format(text) if text and best.get((key, row["calls"])) == row[key] else text)
        lines.append([label(row), str(row["calls"]), *cells])
    return lines


def _csv(rows: Sequence[Row]) -> str:
    """All facts of the rows, those of how they were drawn and measured in columns of their own."""
    flat = [{**row, **row["drawn under"], **row["drawn under"]["versions"], **row["measured by"]} for row in rows]
    flat = [{key: value for key, value in row.items() if not isinstance(value, Mapping)} for row in flat]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in flat for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def _page(plan: Plan, rows: Sequence[Row], folder: Path, title: str, told: Sequence[str]) -> str:
    sections = []
    for part, of in parts_of(rows):
        shown, solvers = columns(of), [row for row in of if row["solver"] != CONVERGED]
        charts = [
            chart(f"{column.title} by {name}", name, _series(solvers, key, x))
            for key, column in shown.items()
            if column.best
            for x, name in (("calls", "calls"), ("milliseconds", "milliseconds an image"))
        ]
        names = dict.fromkeys(map(label, solvers))
        legend = "".join(
            f'<li><span style="background:{colour}"></span>{escape(name)}</li>'
            for name, colour in zip(names, COLOURS * len(names), strict=False)
        )
        lines = _html_table(["solver", "calls", *(c.title for c in shown.values())], _lines(of, shown, "<b>{}</b>"))
        sections.append(
            f'<section><h2>{escape(part)}</h2><div class="wide">{lines}</div><ul class="legend">{legend}</ul>'
            f'<div class="charts">{"".join(charts)}</div>{_pictures(plan, solvers, folder)}</section>'
        )
    notes = "".join(f"<li>{escape(line)}</li>" for line in told)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style>'
        f'<h1>{escape(title)}</h1>{"".join(sections)}<ul class="notes">{notes}</ul></html>\n'
    )


def _series(rows: Sequence[Row], key: str, x: str) -> dict[str, list[tuple[float, float]]]:
    names = dict.fromkeys(map(label, rows))
    return {name: [(row[x], row[key]) for row in rows if label(row) == name and key in row] for name in names}


def _html_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """`lines` may hold markup of our own; what is not ours in them is escaped already."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    rest = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in line) + "</tr>" for line in lines)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{rest}</tbody></table>"


def _pictures(plan: Plan, rows: Sequence[Row], folder: Path) -> str:
    """The first images of every cell, solvers in rows and budgets in columns: in each the same seeds."""
    budgets = sorted({row["calls"] for row in rows})
    solution = plan.solution(rows[0]["model"], rows[0]["guidance"]) if plan.converged else None
    lines = []
    for name in dict.fromkeys(map(label, rows)):
        cells = {row["calls"]: Cell(*(row[key] for key in Cell._fields)) for row in rows if label(row) == name}
        shown = [*(cells.get(calls) for calls in budgets), *([solution] if solution else [])]
        lines.append([escape(name), *(_picture(plan, folder, cell) if cell else "" for cell in shown)])
    head = [f"the same {SHOWN} seeds", *(f"{calls} calls" for calls in budgets), *(["converged"] if solution else [])]
    return f'<div class="wide pictures">{_html_table(head, lines)}</div>'


def _picture(plan: Plan, folder: Path, cell: Cell) -> str:
    images: np.ndarray = shards_of(plan, folder, cell).batch_of(plan.batches()[0])["images"][:SHOWN]
    thin = -(-max(images.shape[1:3]) // LARGEST)
    content = base64.b64encode(png(sheet(images[:, ::thin, ::thin], columns=2))).decode()
    return f'<img src="data:image/png;base64,{content}" alt="{escape(cell.folder)}">'
