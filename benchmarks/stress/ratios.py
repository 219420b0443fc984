"""Ratios of errors: over the better of DDIM and 2M on the same nodes, and over the best peer at its best levels."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from fewstep.bench.markdown import table as markdown
from fewstep.solvers import EVODiff, Solver

from .measure import Bench, Maker
from .peers import SIMPLE
from .problems import LEVELS, Cell

__all__ = ["over_best", "over_simple", "summary", "table"]

NEGLIGIBLE = 1e-4  # of the data's standard deviation; 0 / 0 says nothing
WORSE = 1.1
OWN = "focused"  # the levels of EVODiff's default
Errors = Mapping[Cell, float]
Peers = Mapping[Cell, Mapping[str, float]]


def over_simple(ours: Errors, peers: Peers) -> dict[Cell, float]:
    """Over the better of DDIM and 2M on the same nodes."""
    return {cell: _ratio(error, min(peers[cell][name] for name in SIMPLE)) for cell, error in ours.items()}


def over_best(ours: Errors, peers: Peers, among: Collection[str] = tuple(LEVELS)) -> dict[Cell, float]:
    """Ours on its own levels over the best peer at the best `among` levels."""
    best: dict[Cell, float] = {}
    for cell, errors in peers.items():
        if cell.levels not in among:
            continue
        key = cell._replace(levels="")
        best[key] = min(best.get(key, math.inf), *errors.values())
    return {cell: _ratio(error, best[cell._replace(levels="")]) for cell, error in ours.items() if cell.levels == OWN}


def _ratio(ours: float, theirs: float) -> float:
    return max(ours, NEGLIGIBLE) / max(theirs, NEGLIGIBLE)


def _row(name: str, ratios: Mapping[Cell, float]) -> list[str]:
    values = list(ratios.values())
    if not values:
        return [name, "0", "", "", "", ""]
    mean = math.exp(statistics.fmean(math.log(value) for value in values))
    worst = max(ratios, key=lambda cell: ratios[cell])
    above = sum(value > WORSE for value in values) / len(values)
    return [name, str(len(values)), f"{mean:.3f}", f"{ratios[worst]:.2f}", f"{above:.0%}", ", ".join(map(str, worst))]


def _tell(bench: Bench, title: str, ratios: Mapping[Cell, float]) -> str:
    def of(cell: Cell, what: str) -> object:
        return getattr(bench.problems[cell.problem], what)

    groups: Sequence[tuple[str, Callable[[Cell], object]]] = (
        ("levels", lambda cell: cell.levels),
        ("guidance", lambda cell: of(cell, "guidance")),
        ("schedule", lambda cell: cell.schedule),
        ("calls", lambda cell: cell.calls),
        ("family", lambda cell: of(cell, "family")),
        ("problem", lambda cell: cell.problem),
    )
    rows = [_row("all", ratios)]
    for name, group in groups:
        values = dict.fromkeys(map(group, ratios))
        if len(values) > 1:
            rows += [
                _row(f"{name}: {value}", {cell: ratio for cell, ratio in ratios.items() if group(cell) == value})
                for value in values
            ]
    head = [title, "cells", "mean", "worst", f"> {WORSE}", "the worst"]
    return markdown(head, rows)


def summary(bench: Bench, ours: Errors) -> str:
    """Every ratio, by all that a cell has."""
    peers = bench.peers()
    simple = over_simple(ours, peers)
    elsewhere = [levels for levels in LEVELS if levels != OWN]
    focused = {cell: ratio for cell, ratio in simple.items() if cell.levels == OWN}
    return "\n".join(
        [
            _tell(bench, "over the better of DDIM and 2M", simple),
            _tell(bench, "the same, on focused", focused),
            _tell(bench, "focused, over the best peer at its best levels", over_best(ours, peers)),
            _tell(
                bench,
                "the same, peers not on focused",
                over_best(ours, peers, elsewhere),
            ),
        ]
    )


def table(
    solver: Solver | Maker | None = None,
    split: str = "dev",
    folder: Path | None = None,
    only: str = "",
    pretrained: bool = False,
) -> str:
    """The ratios of a solver, or of what makes one for a problem, on a split; peers and solutions are kept."""
    bench = Bench(split, folder, only, pretrained)
    return summary(bench, bench.errors(EVODiff() if solver is None else solver))
