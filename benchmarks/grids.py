"""The page docs/grids.md: which grid suits which solver, by noise range and calls.

    python -m benchmarks.grids --out docs/grids.md

It reads the records of `benchmarks.quality`, measures nothing itself, and takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import geometric_mean
from typing import Annotated

import typer

from fewstep.bench.markdown import table

from .command import Out, write
from .quality.ratios import NEGLIGIBLE, OURS
from .quality.results import Measurement
from .quality.run import FULL, OWN_GRID, SETTINGS, SINGLE_IMAGES, finished, on_grids

__all__ = ["RANGES", "best", "errors", "page"]

RECORDS = Path(__file__).parent / "quality" / "records" / "report-full"
RANGES: Mapping[str, tuple[int, ...]] = {"5–6": (5, 6), "8–10": (8, 10), "12–20": (12, 15, 20)}
NAMES = {OWN_GRID: "its own", repr(SINGLE_IMAGES): "`focused`, narrow"}

Errors = Mapping[tuple[str, str, str], Mapping[tuple[str, int], float]]


def errors(problems: Iterable[str], records: Path = RECORDS) -> Errors:
    """RMSE by problem and calls, of each schedule, solver and grid, on the samples that it ran on first.

    A grid on which it did not run is as much behind its best as the best of three usual ones is (`quality.run`).
    """
    found: dict[tuple[str, str, str], dict[tuple[str, int], float]] = {}
    for problem in problems:
        ran: dict[tuple[str, int], list[Measurement]] = {}
        for line in (records / problem / "heats" / "results.jsonl").read_text(encoding="utf-8").splitlines():
            each = Measurement.read(line)
            ran.setdefault((each.schedule, each.nfe), []).append(each)
        for (schedule, calls), all_ran in ran.items():
            for solver in {each.solver for each in all_ran}:
                for grid, error in on_grids(all_ran, solver).items():
                    if (solver, grid) == (OURS, "focused"):  # its own, once more
                        continue
                    found.setdefault((schedule, solver, grid), {})[problem, calls] = max(error, NEGLIGIBLE)
    return found


def best(found: Errors, schedule: str, solver: str, calls: tuple[int, ...]) -> list[tuple[str, float]]:
    """The grids by geometric mean RMSE over all problems at `calls`, the best first, each over the best's.

    A grid counts that was measured wherever the solver was.
    """
    rows = {grid: each for (at, name, grid), each in found.items() if (at, name) == (schedule, solver)}
    cells = {cell for each in rows.values() for cell in each if cell[1] in calls}
    means = {
        grid: geometric_mean(each[cell] for cell in cells)
        for grid, each in rows.items()
        if cells and cells <= each.keys()
    }
    least = min(means.values(), default=1.0)
    return sorted(((grid, mean / least) for grid, mean in means.items()), key=lambda each: each[1])


def page(records: Path = RECORDS) -> str:
    """The page as Markdown, of the problems that were measured in full."""
    problems = finished(records, FULL)
    found = errors(problems, records)
    solvers = [OURS, *dict.fromkeys(solver for _, solver, _ in sorted(found) if solver != OURS)]
    grids = []
    for schedule, setting in SETTINGS.items():
        names = (name for name in setting.grids if any(key[::2] == (schedule, name) for key in found))
        grids.append(f"- {schedule}: {', '.join(names)}")
    parts = [INTRODUCTION.format(problems=", ".join(f"*{name}*" for name in problems), grids="\n".join(grids))]
    for schedule in SETTINGS:
        rows = [
            [solver, *(_cell(best(found, schedule, solver, calls)) for calls in RANGES.values())] for solver in solvers
        ]
        parts += [f"## {HEADINGS[schedule]}\n", table(["solver", *RANGES], rows)]
    return "\n".join(parts)


def _cell(ranked: list[tuple[str, float]]) -> str:
    if not ranked:
        return "–"
    (first, _), *others = ranked
    return f"{NAMES.get(first, first)}" + (
        f" ({NAMES.get(others[0][0], others[0][0])}: {others[0][1]:.2f})" if others else ""
    )


HEADINGS = {
    "VE": "VE: EDM, σ/α from 80 to 0.002",
    "VP": "VP: linear betas, σ/α from 152 to 0.01",
    "flow": "Flow: from pure noise to none",
}
INTRODUCTION = """# Which grid for which solver

For people who have chosen a solver and ask on which noise levels to run it. You get the grid on which each erred least,
by the range of noise and the number of calls, and what the next best costs.

Each cell is the grid of the least RMSE to the solution, in geometric mean over the calls of its column and these
problems of [quality.md](quality.md): {problems}. In brackets are the next best grid, and how many times
the least error it leaves. Where that is near 1, either will do. Errors are of the heats. Some solvers ran on a grid
for the first samples only: the ratio to their best grid is taken to be the same on all. Where a solver did not run at
all, the ratio is that of the best of three usual ones. Written by `make grids` from the records of `make quality`.
Measured are, besides `EVODiff()` on its own, which is `focused`, and on `focused(center=3, rise=1, fall=1)`
("`focused`, narrow"), all on:

{grids}
"""


def main(
    records: Annotated[Path, typer.Option(help="The records of benchmarks.quality.")] = RECORDS, out: Out = None
) -> None:
    """Rank the grids for every solver, and write docs/grids.md."""
    write(out, lambda: page(records))


if __name__ == "__main__":
    typer.run(main)
