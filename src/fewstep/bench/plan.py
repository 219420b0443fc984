"""What a bench measures: models x solvers x grids x guidance x calls, from a TOML file or from options."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from inspect import signature
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, Self

from ..grid import Grid
from ..prompts import read_prompts
from ..solvers import Solver
from ..statistics import load_statistics
from ..table import GRIDS, SOLVERS

__all__ = ["CONVERGED", "OWN_GRID", "Candidate", "Cell", "Plan"]

OWN_GRID = "own"
CONVERGED = "converged"  # the cell of the solution that errors are measured against
KINDS: Mapping[str, type] = {"models": str, "grids": str, "metrics": str, "guidance": float}  # of lists; else int
KEYS = {"model": "models", "solver": "solvers", "grid": "grids"}  # by the fields of a cell
METRICS = ("frechet", "rmse", "gain", "isc", "kid", "precision", "recall", "clip", "aesthetic")


class Candidate(NamedTuple):
    """A solver with its options; `grid` None runs it on the plan's grids."""

    solver: Solver
    grid: Grid | None = None


class Cell(NamedTuple):
    """One row of the table: images of one model, by one solver on one grid, at one guidance scale and budget."""

    model: str
    solver: str
    grid: str
    guidance: float
    calls: int

    @property
    def folder(self) -> str:
        """A name for files, which tells what it holds."""
        parts = (self.model, self.solver, self.grid, f"guidance {self.guidance:g}", f"{self.calls} calls")
        return "--".join(re.sub(r"[^\w.+-]+", "-", part).strip("-") for part in parts)


@dataclass(frozen=True)
class Plan:
    """The keys of a `bench.toml`. ValueError, naming the key, for what cannot be run.

    models: packaged names, folders, or `module:function`, which returns a denoiser and its schedule.
    solvers: names of `fewstep solvers`, or tables: `solver`, options of it, `grid`, options of that, and the
        `name` that the report gives it; `statistics`, a file of `fewstep estimate`, for solvers that need one.
    grids: names of `fewstep grids`, or "own"; a solver with a grid of its own in its table keeps that.
    n, seed: how many images a cell, of the seeds from `seed` on. batch: images at a time, and in a file.
    converged: calls of the solution that errors are measured against; 0 measures none.
    extractor: what Fréchet distances see (`bench.extractors`); weights: its file. reference: what they are to, a file.
    prompts: a file of text, a prompt a line, for models of text: seed s draws prompt s, in turn.
    clip: the folder of a CLIP model (`bench.text`), for "clip" and "aesthetic"; aesthetic: the file of LAION's score.
    scores: further scores of images, by name: `module:function`, of pixels and seeds (`bench.measure`).
    published: the figures of a paper that the report shows beside ours, by metric, solver and calls.
    shape: of a model from `module:function` that has no `shape` of its own.
    """

    models: tuple[str, ...] = ("cifar32",)
    solvers: tuple[str | Mapping[str, Any], ...] = ("evodiff", "unipc-3", "dpmpp-2m", "ipndm-4")
    grids: tuple[str, ...] = (OWN_GRID,)
    calls: tuple[int, ...] = (5, 8, 10, 15)
    guidance: tuple[float, ...] = (1.0,)
    n: int = 96
    seed: int = 0
    batch: int = 32
    device: str = "cpu"
    converged: int = 128
    metrics: tuple[str, ...] = ("frechet", "rmse", "gain")
    extractor: str = "classifier"
    weights: str = ""
    reference: str = ""
    prompts: str = ""
    clip: str = ""
    aesthetic: str = ""
    scores: Mapping[str, str] = field(default_factory=dict)
    published: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    shape: tuple[int, ...] = ()

    @staticmethod
    def keys(path: Path) -> dict[str, Any]:
        """What a TOML file says, for `of`."""
        try:
            return tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not valid TOML ({error}): correct it") from error

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        known = {f.name: f for f in fields(cls)}
        for key in given:
            if key not in known:
                raise ValueError(f"a bench has no {key!r}; choose from {', '.join(known)}")
        defaults = cls()
        found: dict[str, Any] = {}
        for key, value in given.items():
            default = getattr(defaults, key)
            if isinstance(default, tuple):
                items = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
                kind = KINDS.get(key, int)
                found[key] = tuple(items if key == "solvers" else (_as(kind, key, each) for each in items))
            else:
                found[key] = _as(Mapping if isinstance(default, Mapping) else type(default), key, value)
        plan = cls(**found)
        plan.check()
        return plan

    def check(self) -> None:
        for key, least in (("n", 2), ("seed", 0), ("batch", 1), ("converged", 0)):
            if getattr(self, key) < least:
                raise ValueError(f"{key} must be at least {least}; got {getattr(self, key)}")
        for key in ("models", "solvers", "grids", "calls", "guidance"):
            if not getattr(self, key):
                raise ValueError(f"{key} must name at least one")
        if min(self.calls) < 1:
            raise ValueError(f"calls must be at least 1; got {min(self.calls)}")
        for key, known in (("grids", (OWN_GRID, *GRIDS)), ("metrics", METRICS)):
            for name in getattr(self, key):
                if name not in known:
                    raise ValueError(f"{name!r} is none of the {key}; choose from {', '.join(known)}")
        if not self.converged and {"rmse", "gain"} & set(self.metrics):
            raise ValueError("rmse and gain need the converged solution: give converged its calls, like 128")
        if "clip" in self.metrics and not self.prompts:
            raise ValueError("clip is of images and their prompts: give prompts, a file with one a line")
        unused = {"clip": {"clip", "aesthetic"}, "aesthetic": {"aesthetic"}}
        for key, of in unused.items():
            if getattr(self, key) and not of & set(self.metrics):
                raise ValueError(f"{key} is for the metrics {', '.join(sorted(of))}: name one of them, or leave it out")
        if taken := set(METRICS) & self.scores.keys():
            raise ValueError(f"a score cannot be called {min(taken)!r}, as a metric is: give it another name")
        self._check_folders()

    def _check_folders(self) -> None:
        """That each cell has a folder of its own, on file systems that know no capitals too."""
        found: dict[str, Cell] = {}
        for model, guidance in product(self.models, self.guidance):
            cells = [cell for cell, _, _ in self.cells(model, guidance)]
            for cell in [self.solution(model, guidance), *cells]:
                other = found.setdefault(cell.folder.casefold(), cell)
                if other != cell:
                    (one, two), key = next(
                        ((a, b), key) for key, a, b in zip(Cell._fields, other, cell, strict=True) if a != b
                    )
                    raise ValueError(
                        f"{KEYS.get(key, key)} {one!r} and {two!r} would share the folder {cell.folder}: leave out "
                        "one, or give names that differ in more than signs and capitals"
                    )

    def candidates(self) -> dict[str, Candidate]:
        """The solvers, by the names that the report gives them."""
        found: dict[str, Candidate] = {}
        for given in self.solvers:
            name, candidate = _candidate(given)
            if name in found or name == CONVERGED:
                raise ValueError(f"two solvers are called {name!r}: give one a `name` of its own")
            found[name] = candidate
        return found

    def cells(self, model: str, guidance: float) -> Iterator[tuple[Cell, Solver, Grid | None]]:
        """The cells of one model at one guidance scale, each with its solver and grid (None: the solver's own)."""
        for (name, candidate), calls in product(self.candidates().items(), self.calls):
            if candidate.grid is not None:
                yield Cell(model, name, repr(candidate.grid), guidance, calls), *candidate
                continue
            for grid in self.grids:
                cell = Cell(model, name, grid, guidance, calls)
                yield cell, candidate.solver, None if grid == OWN_GRID else GRIDS[grid]

    def solution(self, model: str, guidance: float) -> Cell:
        """The cell of the converged solution."""
        return Cell(model, CONVERGED, OWN_GRID, guidance, self.converged)

    def batches(self) -> list[range]:
        """The seeds, a batch each: what is drawn at a time, and kept in a file."""
        seeds = range(self.seed, self.seed + self.n)
        return [seeds[first : first + self.batch] for first in range(0, self.n, self.batch)]

    def texts(self) -> tuple[str, ...]:
        """The prompts; none if there is no file of them."""
        return read_prompts(Path(self.prompts)) if self.prompts else ()

    def record(self) -> dict[str, Any]:
        """As JSON holds it; `of` reads it back."""
        return dataclasses.asdict(self)


def _as(kind: Any, key: str, value: Any) -> Any:
    """`value` if it is of `kind`; an integer will do for a float, and nothing is taken for a boolean."""
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
        raise ValueError(f"{key} must be of {kind.__name__.lower()}; got {value!r}")
    return float(value) if kind is float else value


def _candidate(given: str | Mapping[str, Any]) -> tuple[str, Candidate]:
    options: dict[str, Any] = {"solver": given} if isinstance(given, str) else dict(given)
    name = options.pop("solver", None)
    if name not in SOLVERS:
        raise ValueError(f"no solver {name!r}; `fewstep solvers` lists them")
    solver = SOLVERS[name].solver
    shown, chosen, statistics = options.pop("name", name), options.pop("grid", None), options.pop("statistics", None)
    if statistics is not None:
        options["statistics"] = load_statistics(Path(statistics))
    elif hasattr(solver, "statistics"):
        raise ValueError(f"{name} needs statistics: give its table a file of `fewstep estimate`, statistics = 'FILE'")
    if chosen is not None and chosen not in GRIDS:
        raise ValueError(f"no grid {chosen!r}; `fewstep grids` lists them")
    own = {f.name for f in fields(solver)}  # type: ignore[arg-type]
    for_grid = {key: options.pop(key) for key in list(options) if key not in own and chosen is not None}
    try:
        solver = dataclasses.replace(solver, **options)  # type: ignore[type-var]
        grid = GRIDS[chosen](**for_grid) if chosen is not None else None
        if grid is not None:
            signature(grid.make).bind(None, None, **grid.options)
    except TypeError as error:
        raise ValueError(f"the table of {shown} has options that {name} does not ({error})") from error
    return str(shown), Candidate(solver, grid)
