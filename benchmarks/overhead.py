"""The solvers' own time per call, with a denoiser that costs nothing, beside diffusers' schedulers in the same run."""

from __future__ import annotations

import math
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import typer
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler
from torch import Tensor

from fewstep.integrations.diffusers import EVODiffScheduler
from fewstep.sampling import plan, sample
from fewstep.schedule import EDM
from fewstep.solvers import DDIM, DPMSolverPP, EVODiff, Heun, Solver, UniPC
from fewstep.solvers.core.planned import KEPT, LONGEST, forget

from .command import Out, write

__all__ = ["measure", "page"]

SHAPES = ((1, 4, 64, 64), (16, 4, 64, 64), (1, 4, 128, 128), (1, 16, 128, 128), (1, 16, 21, 60, 104))
CALLS = 20
ROUNDS = 41  # each times every candidate once, in turn, so that a drift of the machine hits all alike
FEW_ROUNDS = 5  # of tensors beyond LARGE elements, whose times scatter less
LARGE = 2**18
WARM_UP = 3
BASE = "diffusers UniPC"

OURS: dict[str, Solver] = {
    "EVODiff": EVODiff(),
    "EVODiff, published": EVODiff("published"),
    "EVODiff, paper": EVODiff("paper"),
    "UniPC-2": UniPC(order=2),
    "UniPC-3": UniPC(order=3),
    "DPM-Solver++ 2M": DPMSolverPP(order=2),
    "DPM-Solver++ 3M": DPMSolverPP(order=3),
    "Heun": Heun(),
    "DDIM": DDIM(),
}
SCHEDULERS: Mapping[str, Callable[[], Any]] = {
    BASE: UniPCMultistepScheduler,
    "diffusers DPM++ 2M": DPMSolverMultistepScheduler,
    "diffusers Euler": EulerDiscreteScheduler,
    "EVODiffScheduler": EVODiffScheduler,
}


class Times(NamedTuple):
    """Of a run, in seconds or microseconds a call: its loop, and what is done once before it, first and then again."""

    loop: float
    first: float
    again: float


def measure(shape: tuple[int, ...], rounds: int = ROUNDS) -> dict[str, Times]:
    """Median microseconds per call of each candidate, without and with what is done once per run."""
    noise, answer = torch.randn(shape), torch.randn(shape)
    candidates: dict[str, Callable[[Tensor, Tensor], Times]] = {
        **{name: _scheduler(make) for name, make in SCHEDULERS.items()},
        **{name: _ours(solver) for name, solver in OURS.items()},
    }
    times: dict[str, list[Times]] = {name: [] for name in candidates}
    for _ in range(rounds + WARM_UP):
        for name, run in candidates.items():
            forget()
            loop, first, again = run(noise, answer)
            times[name].append(Times(loop, loop + first, loop + again))
    scale = 1e6 / CALLS
    return {
        name: Times(*(statistics.median(column) * scale for column in zip(*runs[WARM_UP:], strict=True)))
        for name, runs in times.items()
    }


def _ours(solver: Solver) -> Callable[[Tensor, Tensor], Times]:
    schedule = EDM()

    def run(noise: Tensor, answer: Tensor) -> Times:
        first, again = (_timed(lambda: plan(schedule, solver, nfe=CALLS)) for _ in range(2))
        whole = _timed(lambda: sample(lambda x, t: answer, noise, nfe=CALLS, solver=solver, schedule=schedule))
        return Times(whole - again, first, again)

    return run


def _scheduler(make: Callable[[], Any]) -> Callable[[Tensor, Tensor], Times]:
    scheduler = make()

    def run(noise: Tensor, answer: Tensor) -> Times:
        first, again = (_timed(lambda: scheduler.set_timesteps(CALLS)) for _ in range(2))
        return Times(_timed(lambda: loop(noise, answer)), first, again)

    def loop(x: Tensor, answer: Tensor) -> None:
        with torch.no_grad():
            for t in scheduler.timesteps:
                scheduler.scale_model_input(x, t)
                x = scheduler.step(answer, t, x, return_dict=False)[0]

    return run


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def page() -> str:
    """The figures as Markdown."""
    lines = [
        INTRODUCTION.format(
            calls=CALLS,
            rounds=ROUNDS,
            few=FEW_ROUNDS,
            kept=KEPT,
            longest=LONGEST - 1,
            threads=torch.get_num_threads(),
            machine=platform.machine(),
        )
    ]
    for shape in SHAPES:
        figures = measure(shape, FEW_ROUNDS if math.prod(shape) > LARGE else ROUNDS)
        lines += [f"## {shape}, float32", "", HEAD, "|---|---|---|---|---|---|---|"]
        for name, found in figures.items():
            pairs = zip(found, figures[BASE], strict=True)
            lines.append(f"| {name} | {' | '.join(f'{own:.0f} | {own / base:.2f}' for own, base in pairs)} |")
        lines.append("")
    return "\n".join(lines)


HEAD = "| solver | µs per call | of UniPC's | in a first run | of UniPC's | in later runs | of UniPC's |"
INTRODUCTION = """# Overhead

For people with a fast model, who ask what the solver costs beside it. You get microseconds a call, of our solvers and
of diffusers' schedulers; with a large model they do not matter.

What the solvers themselves cost, written by `make bench-overhead`: runs of {calls} calls of a denoiser that returns a
ready tensor, medians of {rounds} runs of each in turn, {few} of large tensors, {threads} threads ({machine}). Ours is
the whole loop of `fewstep.sample`, without the model; of schedulers it is `step` and `scale_model_input` alone.

The other columns add what is done once a run: levels, checks and planning, and `set_timesteps`. A first run plans.
Later runs of the same solver, schedule and levels find the plan: the last {kept} are kept, of at most {longest} steps.
Solvers with statistics of a model and tuned ones are planned each time. Compare ratios, not microseconds. From a
megabyte on the C library may give a tensor's memory back and page it in anew for the next, some hundred pages a call;
whose turn that is changes from run to run, so that the same solver has two times in some rows of large tensors.
"""


def main(out: Out = None) -> None:
    """Time the solvers themselves, with a free denoiser, beside diffusers' schedulers in the same run."""
    write(out, lambda: page())


if __name__ == "__main__":
    typer.run(main)
