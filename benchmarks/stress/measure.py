"""Errors of solvers on the problems, and where the converged solutions of these are kept."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fewstep.bench.metrics import rmse
from benchmarks.problems.base import FAR, solved
from fewstep.files import write_atomically
from fewstep.sampling import plan
from fewstep.schedule import Node, Schedule
from fewstep.solvers import Solver

from .peers import PEERS, peer
from .problems import LEVELS, Cell, Problem, cells, exact, networks

__all__ = ["Bench", "Maker"]

Maker = Callable[[Problem], Solver]
FIRST_STEPS, MOST_STEPS = 128, 16_384


@lru_cache(maxsize=4096)
def _planned(schedule: Schedule, solver: Solver, levels: str, calls: int):
    return plan(schedule, solver, nfe=calls, grid=LEVELS[levels])


class Bench:
    """The problems of a split, exact or pretrained, with solutions and peers' errors kept in `folder`."""

    def __init__(self, split: str, folder: Path | None = None, only: str = "", pretrained: bool = False):
        self.folder = Path(tempfile.gettempdir()) / "fewstep-stress" if folder is None else folder
        self.folder.mkdir(parents=True, exist_ok=True)
        found = networks(split, self.folder) if pretrained else exact(split)
        self.problems = {name: each for name, each in found.items() if only in name or only == each.family}
        self.cells = list(cells(self.problems))
        self._keys = {name: _digest(each) for name, each in self.problems.items()}
        self._solutions: dict[tuple[str, Schedule, Node, Node], Tensor] = {}
        self._path = self.folder / f"peers-{split}.jsonl"
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        self._peers: dict[str, float] = dict(json.loads(line) for line in lines)

    def error(self, cell: Cell, solver: Solver) -> float:
        """RMSE to the converged solution over the same ends, in the data's standard deviations; inf if not finite."""
        problem = self.problems[cell.problem]
        schedule = problem.schedules[cell.schedule]
        nodes, stages = _planned(schedule, solver, cell.levels, cell.calls)
        exact = self._solution(problem, cell.schedule, nodes[0], nodes[-1])
        x, state = problem.noise() * nodes[0].sigma, None
        with torch.inference_mode():
            for stage in stages:
                x, state = stage(state, x, problem.law.denoised(x, stage.node))
        found = rmse(x, exact) / problem.std
        return found if math.isfinite(found) else math.inf

    def errors(self, solver: Solver | Maker, wanted: Iterable[Cell] | None = None) -> dict[Cell, float]:
        """Of a solver, or of what makes one for a problem, on `wanted` cells or all."""
        make: Maker = solver if not hasattr(solver, "plan") else lambda _: solver
        return {
            cell: self.error(cell, make(self.problems[cell.problem]))
            for cell in (self.cells if wanted is None else wanted)
        }

    def peers(self) -> dict[Cell, Mapping[str, float]]:
        """The errors of all peers, kept between runs."""
        found: dict[Cell, dict[str, float]] = {}
        for cell in self.cells:
            schedule = self.problems[cell.problem].schedules[cell.schedule]
            for name in PEERS:
                solver = peer(name, schedule)
                key = json.dumps([self._keys[cell.problem], *cell[1:], repr(schedule), repr(solver)])
                if key not in self._peers:
                    self._peers[key] = self.error(cell, solver)
                    with self._path.open("a") as file:
                        file.write(json.dumps([key, self._peers[key]]) + "\n")
                found.setdefault(cell, {})[name] = self._peers[key]
        return found

    def _solution(self, problem: Problem, name: str, s: Node, t: Node) -> Tensor:
        schedule = problem.schedules[name]
        key = problem.name, schedule, s, t
        if key not in self._solutions:
            text = json.dumps([self._keys[problem.name], repr(schedule), s, t])
            path = self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.npy"
            if not path.exists():
                buffer = io.BytesIO()
                np.save(buffer, solution(problem, schedule, s, t).numpy(), allow_pickle=False)
                write_atomically(path, buffer.getvalue())
            self._solutions[key] = torch.from_numpy(np.load(path, allow_pickle=False))
        return self._solutions[key]


def solution(problem: Problem, schedule: Schedule, s: Node, t: Node) -> Tensor:
    """Where the ODE carries the problem's noise from s to t, by as many steps as twice as many hardly change."""
    if t.sigma == 0 and schedule.t_min > 0:  # the closing step of a grid
        end = schedule.node(schedule.t_min)
        return problem.law.denoised(solution(problem, schedule, s, end), end)
    x = problem.noise() * s.sigma
    far = FAR + abs(math.log(problem.std))

    def denoiser(x: Tensor, time: float) -> Tensor:
        return problem.law.denoised(x, schedule.node(time))

    steps = FIRST_STEPS
    found = solved(denoiser, schedule, x, s, t, steps, far)
    while True:
        steps *= 2
        before, found = found, solved(denoiser, schedule, x, s, t, steps, far)
        if rmse(before, found) <= problem.converged * problem.std:
            return found
        if steps >= MOST_STEPS:
            raise ValueError(f"{problem.name} on {schedule} does not converge: {rmse(before, found):.2g} at {steps}")


def _digest(problem: Problem) -> str:
    """Of all that its solutions depend on, but for the schedule."""
    sha = hashlib.sha256()

    def add(value: object) -> None:
        if isinstance(value, tuple):
            for each in value:
                add(each)
        elif isinstance(value, Tensor):
            sha.update(value.numpy().tobytes())
        elif dataclasses.is_dataclass(value):
            sha.update(type(value).__name__.encode())
            for each in dataclasses.fields(value):
                add(getattr(value, each.name))
        else:
            sha.update(repr(value).encode())

    for part in (problem.law, problem.shape, problem.seed, problem.samples, problem.converged):
        add(part)
    return sha.hexdigest()
