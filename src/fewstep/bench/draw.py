"""Drawing the images of a plan: a process takes a range of the shards of every cell, and leaves what is there."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..grid import Grid
from ..pictures import pixels
from ..runs import versions
from ..sampling import plan as steps_of
from ..sampling import sample, unit_noise
from ..solvers import Solver
from ..store import Store
from ..table import call
from .compare import CONVERGED_SOLVER, Counted
from .metrics import gains, rmses
from .plan import OWN_GRID, Cell, Plan
from .shards import BATCHES, Shards, encoded, file_of, split
from .subjects import Subject, load_subject

__all__ = ["Worker", "cells_of", "draw", "shards_of"]

IMAGES = "images"  # the folder of all that is drawn


@dataclass(frozen=True)
class Worker:
    """One of `count` processes, wherever they run, that share the work."""

    index: int = 0
    count: int = 1
    device: str = "cpu"
    wait: Callable[[], object] = lambda: None

    @classmethod
    def here(cls, device: str, job: int = 0, jobs: int = 1) -> Worker:
        """This process, of those that `accelerate launch` or torchrun started; they share `job` of `jobs`."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls(job, jobs, device)
        try:
            from accelerate import PartialState
        except ImportError as error:
            raise ImportError("several processes need accelerate: pip install 'fewstep[scale]'") from error
        state = PartialState(cpu=device == "cpu")
        count = state.num_processes
        return cls(job * count + state.process_index, jobs * count, str(state.device), state.wait_for_everyone)

    @property
    def leads(self) -> bool:
        """Whether this process tells and measures for those that `accelerate` started with it."""
        return int(os.environ.get("RANK", "0")) == 0

    def mine(self, shards: list[range]) -> list[range]:
        first, last = (len(shards) * k // self.count for k in (self.index, self.index + 1))
        return shards[first:last]

    def calls(self, plan: Plan) -> int:
        """What `draw` will tell of to this process, if nothing is there yet."""
        shards = list(split(range(plan.n), plan.batch * BATCHES))
        batches = sum(-(-len(shard) // plan.batch) for shard in self.mine(shards))
        return batches * sum(cell.calls for cell in cells_of(plan, solutions=True))


def cells_of(plan: Plan, solutions: bool = False) -> Iterator[Cell]:
    """All cells of the plan, and those of the converged solutions before theirs."""
    for model in plan.models:
        for guidance in plan.guidance:
            if solutions and plan.converged:
                yield plan.solution(model, guidance)
            yield from (cell for cell, _, _ in plan.cells(model, guidance))


def shards_of(plan: Plan, folder: Path, cell: Cell) -> Shards:
    return Shards(folder / IMAGES / cell.folder, range(plan.seed, plan.seed + plan.n), plan.batch)


def draw(
    plan: Plan,
    folder: Path,
    worker: Worker,
    advance: Callable[[int], object] = lambda calls: None,
    overwrite: Collection[str] = (),
    check: Callable[[Subject], object] = lambda subject: None,
) -> None:
    """Draw what `folder` lacks of this worker's share, calling `advance` with the calls that each batch takes.

    `overwrite` names solvers to draw anew; `check` is asked of each model before it is used. OSError if a file cannot
    be written, RuntimeError if the model fails: batches that are finished stay, and the next run goes on from them.
    """
    for name in plan.models:
        subject = load_subject(name, worker.device, plan.shape, plan.batch, plan.texts())
        check(subject)
        for guidance in plan.guidance:
            cells = [*_solution(plan, name, guidance), *plan.cells(name, guidance)]
            for cell, solver, grid in cells:  # what cannot be planned is told before the long run
                steps_of(subject.schedule, solver, nfe=cell.calls, grid=grid or subject.grid)
            every = ",".join(dict.fromkeys(cell.solver for cell, _, _ in cells))
            for cell, solver, grid in cells:
                settings = _settings(plan, subject, cell, solver, grid, worker.device)
                shards = shards_of(plan, folder, cell)
                for shard in worker.mine(list(shards)):
                    anew = cell.solver in overwrite
                    instead = f"--overwrite {cell.solver}; of all solvers --overwrite {every}"
                    again = shards.remedy(shard)
                    with Store(shards.path(shard), settings, overwrite=anew, instead=instead, again=again) as store:
                        if anew:
                            store.begin_anew()
                        for part in shards.parts(shard):
                            if not store.holds(file_of(part)):
                                exact = _exact(plan, folder, cell, part)
                                found = _drawn(subject, cell, solver, grid, part, worker.device, exact)
                                store.write({file_of(part): encoded(**found)})
                            advance(cell.calls)
                        store.record("done")


def _solution(plan: Plan, model: str, guidance: float) -> Iterator[tuple[Cell, Solver, Grid | None]]:
    if plan.converged:
        yield plan.solution(model, guidance), CONVERGED_SOLVER, None


def _settings(
    plan: Plan, subject: Subject, cell: Cell, solver: Solver, grid: Grid | None, device: str
) -> dict[str, Any]:
    statistics = getattr(solver, "statistics", None)
    told = getattr(statistics, "fingerprint", None)
    if told is not None and told != f"{subject.fingerprint}, {subject.conditioning}, guidance {cell.guidance:g}":
        raise ValueError(f"the statistics of {cell.solver} are of {told}, not of {subject.name}: estimate them again")
    prompts = {"prompts": subject.conditioning} if subject.conditioning.startswith("prompts") else {}
    return {
        "model": subject.name, "fingerprint": subject.fingerprint, "schedule": repr(subject.schedule),
        "shape": list(subject.shape), "python": call(solver), "nodes": OWN_GRID if grid is None else repr(grid),
        "statistics": _digest(statistics), "calls": cell.calls,
        "guidance": cell.guidance, "converged": plan.converged, "batch": plan.batch,
        "device": torch.device(device).type, "versions": versions(subject.network), **prompts,
    }  # fmt: skip


def _digest(statistics: Any) -> str | None:
    """Of the numbers that a solver was told of the model, if it was."""
    if statistics is None:
        return None
    columns = (getattr(statistics, f.name) for f in fields(statistics))
    numbers = [column.numpy().tobytes() for column in columns if isinstance(column, Tensor)]
    return hashlib.sha256(b"".join(numbers)).hexdigest()


def _exact(plan: Plan, folder: Path, cell: Cell, part: range) -> Tensor | None:
    """The converged solution of the batch, or None if there is none, or this is it."""
    solution = plan.solution(cell.model, cell.guidance)
    if not plan.converged or cell == solution:
        return None
    return torch.from_numpy(shards_of(plan, folder, solution).batch_of(part)["solution"])


def _drawn(
    subject: Subject, cell: Cell, solver: Solver, grid: Grid | None, seeds: range, device: str, exact: Tensor | None
) -> dict[str, Any]:
    """What is kept of a batch. The converged solution is the one that is kept as it is, in float32."""
    try:
        counted = Counted(subject.denoiser(seeds, cell.guidance))
        noise = unit_noise(seeds, subject.shape, device=device)
        start = {"noise": None, "x": noise} if subject.unit_start else {"noise": noise}
        started = time.perf_counter()
        x = sample(
            counted, **start, nfe=cell.calls, solver=solver, schedule=subject.schedule, grid=grid or subject.grid,
            seeds=seeds,
        ).cpu()  # fmt: skip
        seconds = time.perf_counter() - started
        images = pixels(subject.decode(x.to(device)))
    except Exception as error:
        raise RuntimeError(
            f"{subject.name} failed at {cell.solver}, {cell.calls} calls, seeds {seeds.start} to {seeds[-1]} "
            f"({type(error).__name__}: {error}); finished batches are kept, and the same command goes on from them"
        ) from error
    facts = {"images": images, "seconds": seconds, "calls": counted.calls, "memory": peak_memory(device)}
    if exact is None:
        return {**facts, "solution": x.float().numpy()}
    return {**facts, "rmse": rmses(x, exact).numpy(), "gain": gains(x, exact).numpy()}


def peak_memory(device: str) -> int:
    """Bytes, the most so far: of an accelerator's allocator, or of this process."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
