"""Ratios of errors: over the better of DDIM and 2M on the same nodes, and over the best peer at its best levels."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fewstep.bench.markdown import table as markdown
from fewstep.solvers import EVODiff, Solver

from .measure import FOLDER, Bench, Maker
from .peers import PEERS, SIMPLE
from .problems import OWN, Cell, Problem, only, problems

__all__ = ["Summary", "over_best", "over_simple", "report", "summed", "table"]

NEGLIGIBLE = 1e-4  # of the data's standard deviation: 0 / 0 says nothing
WORSE = 1.1
Errors = Mapping[Cell, float]
Peers = Mapping[Cell, Mapping[str, float]]


class Summary(NamedTuple):
    """Of ratios: how many, their geometric mean, the largest and its cell, and the share above WORSE."""

    cells: int
    mean: float
    worst: float
    above: float
    where: Cell


def over_simple(ours: Errors, peers: Peers) -> dict[Cell, float]:
    """Over the better of DDIM and 2M on the same nodes."""
    return {cell: _ratio(error, min(peers[cell][name] for name in SIMPLE)) for cell, error in ours.items()}


def over_best(ours: Errors, peers: Peers, names: Collection[str] = PEERS) -> dict[Cell, float]:
    """Ours on its own levels, over the best of the peers of these names on the best of all levels."""
    best: dict[Cell, float] = {}
    for cell, errors in peers.items():
        key = cell._replace(levels="")
        best[key] = min(best.get(key, math.inf), *(error for name, error in errors.items() if name in names))
    return {cell: _ratio(error, best[cell._replace(levels="")]) for cell, error in ours.items() if cell.levels == OWN}


def _ratio(ours: float, theirs: float) -> float:
    return max(ours, NEGLIGIBLE) / max(theirs, NEGLIGIBLE)


def summed(ratios: Mapping[Cell, float]) -> Summary:
    """ValueError if there are none."""
    where = max(ratios, key=lambda cell: ratios[cell])
    values = list(ratios.values())
    mean = math.exp(statistics.fmean(map(math.log, values))) if ratios[where] < math.inf else math.inf
    return Summary(len(values), mean, ratios[where], sum(value > WORSE for value in values) / len(values), where)


def _rows(found: Mapping[str, Problem], ratios: Mapping[Cell, float], groups: Sequence[str]) -> list[list[str]]:
    """A line for all cells, and one for each value of each of `groups`."""
    rows = [_row("all", ratios)]
    for group in groups:
        of = GROUPS[group]
        values = dict.fromkeys(of(found, cell) for cell in ratios)
        if len(values) > 1:
            rows += [
                _row(f"{group}: {value}", {cell: each for cell, each in ratios.items() if of(found, cell) == value})
                for value in values
            ]
    return rows


GROUPS: Mapping[str, Callable[[Mapping[str, Problem], Cell], str]] = {
    "levels": lambda _, cell: cell.levels,
    "guidance": lambda found, cell: f"{found[cell.problem].guidance:g}",
    "schedule": lambda _, cell: cell.schedule,
    "calls": lambda _, cell: str(cell.calls),
    "family": lambda found, cell: found[cell.problem].family,
    "problem": lambda _, cell: cell.problem,
}


def _row(name: str, ratios: Mapping[Cell, float]) -> list[str]:
    found = summed(ratios)
    where = ", ".join(map(str, found.where))
    return [name, str(found.cells), f"{found.mean:.3f}", f"{found.worst:.2f}", f"{found.above:.0%}", where]


def report(bench: Bench, ours: Errors, peers: Peers, groups: Sequence[str] = tuple(GROUPS)) -> dict[str, str]:
    """The tables of all ratios, in Markdown, by what they are over."""
    simple = over_simple(ours, peers)
    kinds = {
        "over the better of DDIM and 2M on the same nodes": simple,
        "the same, on its own levels": {cell: ratio for cell, ratio in simple.items() if cell.levels == OWN},
        "on its own levels, over the best peer at its best levels": over_best(ours, peers),
    }
    head = ["", "cells", "geometric mean", "worst", f"above {WORSE}", "the worst"]
    return {name: markdown(head, _rows(bench.problems, ratios, groups)) for name, ratios in kinds.items() if ratios}


def table(
    solver: Solver | Maker | None = None,
    split: str = "dev",
    part: str = "",
    kind: str = "exact",
    quick: bool = False,
    folder: Path = FOLDER,
) -> str:
    """The tables of a solver, or of what makes one for a problem; `part` is a family, or of the problems' names."""
    ours = EVODiff() if solver is None else solver
    bench = Bench(only(problems(kind, split, folder), part), folder, quick)
    found = report(bench, bench.errors(ours), bench.peers(ours))
    return "\n".join(f"{name}\n\n{lines}" for name, lines in found.items())
