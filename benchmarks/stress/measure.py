"""Errors of solvers on the problems, beside the converged solutions and the errors of peers, which are kept."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.bench.metrics import rmse, rmses
from fewstep.files import write_atomically
from fewstep.grid import GridFunction
from fewstep.sampling import plan
from fewstep.schedule import Node, Schedule
from fewstep.solvers import Solver, Stage

from ..problems.base import FAR, solved
from .peers import PEERS, SIMPLE, peer
from .problems import LEVELS, OWN, Cell, Problem, cells

__all__ = ["FOLDER", "Bench", "Kept", "Maker", "solution"]

Maker = Callable[[Problem], Solver]
Plan = tuple[tuple[Node, ...], Sequence[Stage]]
FOLDER = Path(tempfile.gettempdir()) / "fewstep-stress"
FIRST_STEPS, MOST_STEPS = 128, 16_384


class Kept:
    """Errors on disk, a line each, written as soon as it is measured; without a path, in memory."""

    def __init__(self, path: Path | None = None):
        self.path = path
        text = path.read_text(encoding="utf-8") if path is not None and path.exists() else ""
        whole = text[: text.rfind("\n") + 1]  # an interruption may have cut the last line
        if path is not None and whole != text:
            write_atomically(path, whole.encode())
        self._found: dict[tuple[str, ...], float] = {}
        for line in whole.splitlines():
            *key, error = json.loads(line)
            self._found[tuple(key)] = error

    def once(self, key: tuple[str, ...], measure: Callable[[], float]) -> float:
        if key not in self._found:
            self._found[key] = measure()
            if self.path is not None:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([*key, self._found[key]]) + "\n")
        return self._found[key]


class Bench:
    """Problems, with what is kept of them in `folder`: converged solutions, and errors of peers."""

    def __init__(self, problems: Mapping[str, Problem], folder: Path = FOLDER, quick: bool = False):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.problems = folder, problems
        self.cells = list(cells(problems, quick))
        self._digests = {name: _digest(each) for name, each in problems.items()}
        self._solutions: dict[tuple[str, Schedule, Node, Node], Tensor] = {}
        self._plans: dict[tuple[Schedule, Solver, GridFunction, int], Plan] = {}
        self._kept = Kept(folder / "peers.jsonl")

    def errors(
        self, solver: Solver | Maker, kept: Kept | None = None, levels: Collection[str] = tuple(LEVELS)
    ) -> dict[Cell, float]:
        """By cell, of a solver, or of what makes one for a problem, on some kinds of levels.

        Those in `kept` are not measured again: they are known by the repr of the solver, not by its code.
        """
        make, kept = _maker(solver), kept or Kept()
        found: dict[Cell, float] = {}
        for cell in self.cells:
            if cell.levels in levels:
                ours = make(self.problems[cell.problem])
                found[cell] = self._error(cell, ours, ours.grid, kept)
        return found

    def peers(self, solver: Solver | Maker) -> dict[Cell, dict[str, float]]:
        """By cell and name, of the peers beside `solver`, whose grid gives its own levels.

        On networks only the simple ones run on it, to save hours.
        """
        make = _maker(solver)
        found: dict[Cell, dict[str, float]] = {}
        for cell in self.cells:
            problem = self.problems[cell.problem]
            schedule = problem.schedules[cell.schedule]
            names: Sequence[str] = SIMPLE if problem.pretrained and cell.levels == OWN else PEERS
            own = make(problem).grid
            found[cell] = {name: self._error(cell, peer(name, schedule), own, self._kept) for name in names}
        return found

    def samples(self, solver: Solver | Maker, cell: Cell, own: GridFunction | None = None) -> Tensor:
        """RMSE of each sample to its converged solution between the same ends, in data standard deviations."""
        problem = self.problems[cell.problem]
        solver = _maker(solver)(problem)
        schedule = problem.schedules[cell.schedule]
        nodes, stages = self._plan(schedule, solver, LEVELS[cell.levels] or own or solver.grid, cell.calls)
        exact = self._solution(problem, schedule, nodes[0], nodes[-1])
        x = problem.noise * nodes[0].sigma
        state: Any = None
        with torch.inference_mode():
            for stage in stages:
                x, state = stage(state, x, problem.law.denoised(x, schedule.node(stage.node.time)))
        return rmses(x, exact) / problem.std

    def _error(self, cell: Cell, solver: Solver, own: GridFunction, kept: Kept) -> float:
        """Of all samples; inf if not finite."""
        problem = self.problems[cell.problem]
        nodes, _ = self._plan(problem.schedules[cell.schedule], solver, LEVELS[cell.levels] or own, cell.calls)

        def measure() -> float:
            found = float(self.samples(solver, cell, own).square().mean().sqrt())
            return found if math.isfinite(found) else math.inf

        content = _hash(self._digests[cell.problem], repr(nodes), repr(solver))
        return kept.once((*map(str, cell), type(solver).__name__, content), measure)

    def _plan(self, schedule: Schedule, solver: Solver, grid: GridFunction, calls: int) -> Plan:
        """Made once for all problems."""
        key = schedule, solver, grid, calls
        if key not in self._plans:
            self._plans[key] = plan(schedule, solver, nfe=calls, grid=grid)
        return self._plans[key]

    def _solution(self, problem: Problem, schedule: Schedule, s: Node, t: Node) -> Tensor:
        key = problem.name, schedule, s, t
        if key not in self._solutions:
            path = self.folder / f"{_hash(self._digests[problem.name], repr(schedule), repr(s), repr(t))}.npy"
            if not path.exists():
                buffer = io.BytesIO()
                np.save(buffer, solution(problem, schedule, s, t).numpy(), allow_pickle=False)
                write_atomically(path, buffer.getvalue())
            self._solutions[key] = torch.from_numpy(np.load(path, allow_pickle=False))
        return self._solutions[key]


def solution(problem: Problem, schedule: Schedule, s: Node, t: Node) -> Tensor:
    """Where the ODE carries the problem's noise from s to t, by so many steps that twice as many hardly change it."""
    if t.sigma == 0 and schedule.t_min > 0:  # the closing step of a grid
        end = schedule.node(schedule.t_min)
        return problem.law.denoised(solution(problem, schedule, s, end), end)
    x = problem.noise * s.sigma
    far = FAR + abs(math.log(problem.std))  # in units of the data

    def denoiser(x: Tensor, time: float) -> Tensor:
        return problem.law.denoised(x, schedule.node(time))

    steps = FIRST_STEPS
    found = solved(denoiser, schedule, x, s, t, steps, far)
    while steps < MOST_STEPS:
        steps *= 2
        before, found = found, solved(denoiser, schedule, x, s, t, steps, far)
        if rmse(before, found) <= problem.converged * problem.std:
            return found
    raise ValueError(f"{problem.name} on {schedule} has no converged solution: {rmse(before, found):.2g} at {steps}")


def _maker(solver: Solver | Maker) -> Maker:
    return solver if callable(solver) else lambda _: solver


def _hash(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _digest(problem: Problem) -> str:
    """Of all that its solutions depend on, but for the schedule."""
    sha = hashlib.sha256()

    def add(value: object) -> None:
        if isinstance(value, Tensor):
            sha.update(value.numpy().tobytes())
        elif isinstance(value, tuple):
            for each in value:
                add(each)
        elif dataclasses.is_dataclass(value):
            sha.update(type(value).__name__.encode())
            for field in dataclasses.fields(value):
                add(getattr(value, field.name))
        else:
            sha.update(repr(value).encode())

    add((problem.law, problem.shape, problem.seed, problem.samples, problem.converged))
    return sha.hexdigest()
