"""The drawings of docs/figures. Measured numbers are drawn from the pages that hold them, paths from the solvers, so
that drawings say what the pages and the code say. `benchmarks.photographs` has the images.

A drawing is an SVG with nothing in it but paths and text, which follows the reader's light or dark setting.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from fewstep.bench.svg import COLOURS
from fewstep.files import write_atomically
from fewstep.grid import Grid, focused, karras, log_snr, simple
from fewstep.prediction import Denoiser
from fewstep.sampling import trajectory
from fewstep.schedule import EDM, Flow, Schedule
from fewstep.solvers import DDIM, EVODiff, Solver, UniPC

from .command import say
from .problems.mixtures import GaussianMixture

__all__ = ["DOCS", "INK", "PAPER", "drawings", "rows"]

DOCS = Path(__file__).parents[1] / "docs"
INK, RULE, PAPER = ("#1c1c1c", "#e8e8e8"), ("#c8c8c8", "#4a4d57"), ("#ffffff", "#1e2129")  # light, dark
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 680, 380, 66, 210, 48, 54
LOW = 230  # the height of a drawing of a few rows
LINE = 18  # pixels between labels
CALLS = 8  # of the runs whose paths are shown
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Axis:
    """From `low`, at the left or the bottom, to `high`, which may be the less of the two."""

    name: str
    low: float
    high: float
    ticks: Sequence[float]
    log: bool = True

    def share(self, value: float) -> float:
        low, high, at = map(math.log, (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return (at - low) / (high - low)


@dataclass(frozen=True)
class Series:
    """A line through points, dots at them, or the area between `points` and `under`. Nameless ones have no label."""

    points: Points
    name: str = ""
    colour: str = COLOURS[6]
    line: bool = True
    dots: bool = True
    dash: str = ""
    under: Points = ()


def drawing(title: str, told: str, across: Axis, up: Axis, series: Sequence[Series], height: int = HEIGHT) -> str:
    """`told` is what the picture shows, for those who cannot see it. Names stand at the ends of their lines."""

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x, y = across.share(point[0]), up.share(point[1])
        return LEFT + x * (WIDTH - LEFT - RIGHT), height - BOTTOM - y * (height - TOP - BOTTOM)

    def path(points: Points) -> str:
        return "L".join(f"{x:.1f} {y:.1f}" for x, y in map(place, points))

    parts = [f'<text x="{LEFT}" y="22" class="title">{escape(title)}</text>']
    for value in up.ticks:
        y = place((across.low, value))[1]
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" class="rule"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 5:.1f}" text-anchor="end">{value:g}</text>')
    for value in across.ticks:
        x = place((value, up.low))[0]
        parts.append(f'<text x="{x:.1f}" y="{height - BOTTOM + 20}" text-anchor="middle">{value:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{height - 10}" text-anchor="middle">{escape(across.name)}</text>')
    if up.name:
        parts.append(f'<text x="{LEFT}" y="{TOP - 8}">{escape(up.name)}</text>')
    for each in series:
        if each.under:
            area = f"M{path(each.points)}L{path(each.under[::-1])}Z"
            parts.append(f'<path d="{area}" fill="{each.colour}" fill-opacity="0.25"/>')
            continue
        if each.line:
            dash = f' stroke-dasharray="{each.dash}"' if each.dash else ""
            parts.append(f'<path d="M{path(each.points)}" fill="none" stroke="{each.colour}" stroke-width="2"{dash}/>')
        for x, y in map(place, each.points if each.dots else ()):
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{each.colour}"/>')
    named = [(place(each.points[-1]), each) for each in series if each.name]
    for y, (_, each) in zip(_apart([at[1] for at, _ in named], height - BOTTOM), named, strict=True):
        parts.append(f'<path d="M{WIDTH - RIGHT + 8} {y:.1f}h10" stroke="{each.colour}" stroke-width="4"/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 22}" y="{y + 5:.1f}">{escape(each.name)}</text>')
    return _svg(title, told, parts, height)


def _svg(title: str, told: str, parts: Sequence[str], height: int) -> str:
    text, rule = (f"{{fill:{INK[k]}}}" for k in (0, 1)), (f"{{stroke:{RULE[k]}}}" for k in (0, 1))
    (light, dark), (thin, thin_dark) = text, rule
    style = (
        f"text{light}text{{font:15px sans-serif}}.title{{font:bold 17px sans-serif}}.rule{thin}"
        f"@media(prefers-color-scheme:dark){{text{dark}.rule{thin_dark}}}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">'
        f"<title>{escape(title)}</title><desc>{escape(told)}</desc><style>{style}</style>\n"
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _apart(places: Sequence[float], lowest: float) -> list[float]:
    """Places of labels, no two of them nearer than a line, moved as little as going down once allows."""
    order, found, last = sorted(range(len(places)), key=lambda k: places[k]), list(places), -math.inf
    for k in order:
        found[k] = last = max(places[k], last + LINE)
    over = max(0.0, last - lowest)
    return [max(TOP, place - over) for place in found]


# ---- from the pages


def rows(page: str, heading: str) -> list[dict[str, str]]:
    """The first table below that heading of a page of docs/, a row a dictionary, without bold."""
    text = (DOCS / page).read_text(encoding="utf-8")
    below = re.split(rf"^#+ {re.escape(heading)}\n", text, maxsplit=1, flags=re.MULTILINE)
    if len(below) == 1:
        raise ValueError(f"docs/{page} has no heading {heading!r}: the drawing that is made of its table needs one")
    lines = re.search(r"(?:^\|.*\n)+", below[1], re.MULTILINE)
    assert lines is not None, heading
    cells = [[cell.strip().strip("*`") for cell in line.strip("|").split("|")] for line in lines[0].splitlines()]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def error_by_calls() -> str:
    """Of the packaged network, docs/quality.md."""
    table = rows("quality.md", "model, VE")

    def line(column: str, name: str, colour: str, dash: str = "") -> Series:
        return Series([(float(row["calls"]), float(row[column])) for row in table], name, colour, dash=dash)

    return drawing(
        "Error by number of calls, packaged network",
        "Three falling lines: EVODiff() is lowest at every number of calls, the best of ten peers above it, and the "
        "authors' EVODiff highest.",
        Axis("calls of the model", 4.7, 21, [5, 6, 8, 10, 12, 15, 20]),
        Axis("error (RMSE to the converged image)", 0.0008, 0.2, [0.001, 0.003, 0.01, 0.03, 0.1]),
        [
            line("published", "authors' code", COLOURS[3], "2 4"),
            line("best peer", "best of ten peers", COLOURS[1], "7 4"),
            line("EVODiff()", "EVODiff()", COLOURS[0]),
        ],
    )


def error_by_levels(part: str, title: str, told: str) -> str:
    """Of EVODiff on several grids, docs/levels.md."""
    table = [row for row in rows("levels.md", part) if row["solver"] == "evodiff"]
    calls = [5, 8, 10, 15, 20]
    return drawing(
        title,
        told,
        Axis("calls of the model", 4.7, 21, calls),
        Axis("error (RMSE to the converged image)", 0.0018, 0.45, [0.003, 0.01, 0.03, 0.1, 0.3]),
        [
            Series([(n, float(row[str(n)])) for n in calls], row["levels"], colour, dash=dash)
            for row, colour, dash in zip(table, COLOURS, ("", "7 4", "2 4", "9 3 2 3"), strict=False)
        ],
    )


def stress_by_solver() -> str:
    """Each solver over the better of two, docs/stress.md: the mean and the share of cells that are worse."""
    table = sorted(rows("stress.md", "All solvers, on the same nodes"), key=lambda row: _first(row["all"]))
    cells = rows("stress.md", "Under stress")[0]["cells"]
    series = []
    for k, row in enumerate(table):
        colour = COLOURS[0] if row[""] == "EVODiff()" else COLOURS[6]
        mean = _first(row["all"])
        series.append(Series([(1, -k), (mean, -k)], f"{row['']} {mean:.2f}", colour, dots=False))
        series.append(Series([(mean, -k)], "", colour, line=False))
    return drawing(
        "Error over that of the better of DDIM and 2M",
        "One bar for each solver, from 1: EVODiff() alone is to the left of 1, every other solver to the right.",
        Axis(f"geometric mean over {cells} cells; left of 1 is better", 0.5, 3.2, [0.5, 0.7, 1, 1.5, 2, 3]),
        Axis("", -len(table) + 0.5, 0.5, [], log=False),
        series,
    )


def _first(text: str) -> float:
    return float(text.split("/")[0])


def entropy_by_level() -> str:
    """How fast the packaged network decides, docs/entropy.md."""

    def line(part: str, name: str, colour: str, dash: str = "") -> Series:
        table = rows("entropy.md", part)
        points = [(float(row["σ/α"]), float(row["Var(ε given x) = nats a unit"])) for row in table]
        return Series(points, name, colour, dots=False, dash=dash)

    dots = [float(row["σ/α"]) for row in rows("entropy.md", "No guidance") if row["8 calls"]]
    return drawing(
        "Where the packaged network decides",
        "Three curves that rise from left, pure noise, to right, the clean image: nearly nothing is decided at much "
        "noise, most of it among clean levels; more guidance, more of it earlier.",
        Axis("noise level σ/α (a run goes to the right)", 80, 0.002, [80, 10, 1, 0.1, 0.01, 0.002]),
        Axis("nats a pixel, per unit of log-noise", 2e-5, 1.5, [1e-4, 1e-3, 1e-2, 1e-1, 1]),
        [
            line("Guidance 7.5", "guidance 7.5", COLOURS[3], "2 4"),
            line("Guidance 4", "guidance 4", COLOURS[1], "7 4"),
            line("No guidance", "no guidance", COLOURS[0]),
            Series([(level, 3e-5) for level in dots], "levels of 8 calls", COLOURS[6], line=False),
        ],
    )


# ---- of the solvers, on what is known exactly


def nodes(
    schedule: Schedule, calls: int, grids: Mapping[str, Grid], title: str, told: str, ticks: Sequence[float]
) -> str:
    """Where a run calls the model, a row a grid."""
    series = []
    for k, (name, grid) in enumerate(grids.items()):
        levels = [node.sigma / node.alpha for node in grid(schedule, calls) if node.alpha > 0 and node.sigma > 0]
        seen = [(level, -k) for level in levels if min(ticks) / 1.2 <= level <= max(ticks) * 1.2]
        series.append(Series(seen, name, COLOURS[k], dots=True))
    across = Axis("noise level σ/α (a run goes to the right)", max(ticks) * 1.25, min(ticks) / 1.25, ticks)
    return drawing(title, told, across, Axis("", -len(grids) + 0.5, 0.5, [], log=False), series, LOW)


def two_modes() -> tuple[Denoiser, Schedule]:
    """Numbers that are near -1 or near 1, and their exact denoiser."""
    schedule, one = EDM(sigma_max=20.0), torch.ones(2, 1, dtype=torch.float64)
    law = GaussianMixture(one[:, 0] / 2, torch.tensor([[-1.0], [1.0]]).double(), 0.15**2 * one, one[:, None], (1,))
    return law.denoiser(schedule), schedule


def paths() -> str:
    """One number from noise to data: the exact paths, and the steps of two solvers in few calls."""
    denoiser, schedule = two_modes()
    starts = torch.tensor([[-1.3], [-0.55], [0.12], [0.8]], dtype=torch.float64)

    def seen(solver: Solver, steps: int, grid: Grid) -> list[Points]:
        nodes = grid(schedule, steps)
        start = nodes[0].sigma * starts
        states = [start, *(step.x for step in trajectory(denoiser, start, nodes, solver=solver))]
        levels = [node.sigma for node in nodes]
        return [
            [(level, float(x[k, 0]) / math.hypot(1, level)) for x, level in zip(states, levels, strict=False) if level]
            for k in range(len(starts))
        ]

    kinds = (
        (seen(UniPC(3), 200, log_snr), Series((), "exact path", dots=False)),
        (seen(DDIM(), CALLS, karras), Series((), f"Euler, {CALLS} calls", COLOURS[1], dash="7 4")),
        (seen(EVODiff(), CALLS, focused), Series((), f"EVODiff(), {CALLS} calls", COLOURS[0], line=False)),
    )
    return drawing(
        "The path of a number from noise to data",
        "Four curves from noise at the left to values near -1 or 1 at the right. EVODiff's dots lie on the curves, "
        "Euler's broken lines beside them.",
        Axis("noise level σ (a run goes to the right)", 20, 0.002, [20, 5, 1, 0.2, 0.05, 0.01, 0.002]),
        Axis("state / √(1 + σ²)", -1.45, 1.45, [-1, 0, 1], log=False),
        [
            replace(kind, points=line, name=kind.name if line is lines[-1] else "")
            for lines, kind in kinds
            for line in lines
        ],
    )


def regression() -> str:
    """What three answers tell of those to come: a sketch of the prior of `path_prior`, Matérn-3/2."""
    answers = {0.0: 0.15, 0.7: 0.5, 1.4: 0.72}
    at, values = np.array(list(answers)), np.array(list(answers.values()))
    steps = np.linspace(0, 2.3, 70)

    def alike(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        scaled = np.sqrt(3) * np.abs(a[:, None] - b[None]) / 0.5
        smooth: np.ndarray = 0.09 * (1 + scaled) * np.exp(-scaled) + 0.25 * (1 + a[:, None] * b[None])
        return smooth

    gain = np.linalg.solve(alike(at, at), alike(at, steps)).T
    mean = gain @ values
    deviation = np.sqrt(np.maximum(0, np.diag(alike(steps, steps)) - (gain * alike(steps, at)).sum(1)))
    upper, lower = ([*zip(steps, mean + sign * deviation, strict=True)] for sign in (1, -1))
    straight = values[2] + (values[2] - values[1]) * (2.3 - 1.4) / 0.7
    return drawing(
        "What three answers tell of the next",
        "Three dots, the model's answers so far. From the last the shaded band of what is likely widens; the "
        "regression goes through its middle, Euler goes on level and 2M goes on straight.",
        Axis("progress of the run (half log-SNR)", 0, 2.3, [0, 0.7, 1.4, 2.1], log=False),
        Axis("the model's answer for one pixel", -0.1, 1.5, [0, 0.5, 1], log=False),
        [
            Series(upper, under=lower, colour=COLOURS[0]),
            Series([(1.4, values[2]), (2.3, straight)], "straight on (2M)", COLOURS[1], dots=False, dash="7 4"),
            Series([*zip(steps, mean, strict=True)], "regression", COLOURS[0], dots=False),
            Series([(1.4, values[2]), (2.3, values[2])], "level (Euler)", COLOURS[3], dots=False, dash="2 4"),
            Series([*answers.items()], line=False),
        ],
    )


def _nodes_of_images() -> str:
    grids = {"focused": focused, "Karras": karras, "even log-SNR": log_snr}
    return nodes(
        EDM(), 10, grids, "Where 10 calls are made, EDM's range",
        "Three rows of dots from σ = 80 to 0.002: focused is dense between 10 and 0.3, Karras between 80 and 1, even "
        "log-SNR is even.",
        [80, 10, 1, 0.1, 0.01, 0.002],
    )  # fmt: skip


def _nodes_of_flows() -> str:
    grids = {"focused": focused, "simple, shift 3": simple, "Karras": karras}
    return nodes(
        Flow(shift=3.0), 10, grids, "Where 10 calls are made, a flow of shift 3",
        "Three rows of dots: simple crowds at much noise and makes one long step at the end, Karras' levels begin and "
        "end further out with few between, focused is spread.",
        [100, 10, 1, 0.1, 0.01],
    )  # fmt: skip


DRAWINGS = {
    "error-by-calls": error_by_calls,
    "stress-by-solver": stress_by_solver,
    "levels-sd": lambda: error_by_levels(
        "Stable Diffusion 1.5", "EVODiff() on four kinds of levels, Stable Diffusion 1.5's betas",
        "Karras' levels and focused are lowest, even log-SNR next, the config's own far above from 8 calls on.",
    ),
    "levels-flow": lambda: error_by_levels(
        "Stable Diffusion 3", "EVODiff() on four kinds of levels, Stable Diffusion 3's flow",
        "Focused is lowest from 8 calls on; Karras' levels are highest throughout.",
    ),
    "entropy": entropy_by_level,
    "nodes": _nodes_of_images,
    "nodes-flow": _nodes_of_flows,
    "paths": paths,
    "regression": regression,
}  # fmt: skip


def drawings() -> Iterator[tuple[str, str]]:
    """The name of each file, and what is in it."""
    for name, draw in DRAWINGS.items():
        yield f"{name}.svg", draw()


def main(out: Annotated[Path, typer.Option(help="The folder.")] = DOCS / "figures") -> None:
    """Draw docs/figures anew, in seconds."""
    for name, text in drawings():
        say(name)
        write_atomically(out / name, text.encode())


if __name__ == "__main__":
    typer.run(main)
