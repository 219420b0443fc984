"""The solvers' own time per call, with a denoiser that costs nothing, beside diffusers' schedulers in the same run."""

from __future__ import annotations

import math
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import typer
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler
from torch import Tensor

from fewstep.integrations.diffusers import EVODiffScheduler
from fewstep.sampling import integrate, plan
from fewstep.schedule import EDM
from fewstep.solvers import DDIM, DPMSolverPP, EVODiff, Heun, Solver, UniPC

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


def measure(shape: tuple[int, ...], rounds: int = ROUNDS) -> dict[str, tuple[float, float]]:
    """Median microseconds per call of each candidate, without and with what is done once per run."""
    noise, answer = torch.randn(shape), torch.randn(shape)
    candidates: dict[str, Callable[[Tensor, Tensor], tuple[float, float]]] = {
        **{name: _scheduler(make) for name, make in SCHEDULERS.items()},
        **{name: _ours(solver) for name, solver in OURS.items()},
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
    for _ in range(rounds + WARM_UP):
        for name, run in candidates.items():
            times[name].append(run(noise, answer))
    scale = 1e6 / CALLS
    return {
        name: (
            statistics.median(loop for loop, _ in runs[WARM_UP:]) * scale,
            statistics.median(loop + once for loop, once in runs[WARM_UP:]) * scale,
        )
        for name, runs in times.items()
    }


def _ours(solver: Solver) -> Callable[[Tensor, Tensor], tuple[float, float]]:
    def run(noise: Tensor, answer: Tensor) -> tuple[float, float]:
        started = time.perf_counter()
        nodes, _ = plan(EDM(), solver, nfe=CALLS)
        planned = time.perf_counter()
        integrate(lambda x, t: answer, noise * nodes[0].sigma, nodes, solver=solver, schedule=EDM(), nfe=CALLS)
        done = time.perf_counter()
        # integrate plans once more: what it takes for that is not the loop's.
        return done - planned - (planned - started), planned - started

    return run


def _scheduler(make: Callable[[], Any]) -> Callable[[Tensor, Tensor], tuple[float, float]]:
    scheduler = make()

    def run(noise: Tensor, answer: Tensor) -> tuple[float, float]:
        started = time.perf_counter()
        scheduler.set_timesteps(CALLS)
        planned = time.perf_counter()
        x = noise
        with torch.no_grad():
            for t in scheduler.timesteps:
                scheduler.scale_model_input(x, t)
                x = scheduler.step(answer, t, x, return_dict=False)[0]
        return time.perf_counter() - planned, planned - started

    return run


def page() -> str:
    """The figures as Markdown."""
    lines = [
        INTRODUCTION.format(
            calls=CALLS, rounds=ROUNDS, few=FEW_ROUNDS, threads=torch.get_num_threads(), machine=platform.machine()
        )
    ]
    for shape in SHAPES:
        figures = measure(shape, FEW_ROUNDS if math.prod(shape) > LARGE else ROUNDS)
        base, base_run = figures[BASE]
        lines += [f"## {shape}, float32", "", "| solver | µs per call | of UniPC's | with set-up | of UniPC's |"]
        lines.append("|---|---|---|---|---|")
        lines += [
            f"| {name} | {loop:.0f} | {loop / base:.2f} | {run:.0f} | {run / base_run:.2f} |"
            for name, (loop, run) in figures.items()
        ]
        lines.append("")
    return "\n".join(lines)


INTRODUCTION = """# Overhead

For people with a fast model, who ask what the solver costs beside it. You get microseconds a call, of our solvers and
of diffusers' schedulers; with a large model they do not matter.

What the solvers themselves cost, written by `make bench-overhead`: runs of {calls} calls of a denoiser that returns a
ready tensor, medians of {rounds} runs of each in turn, {few} of large tensors, {threads} threads ({machine}). Ours is
the whole loop of `fewstep.sample`, without the model; of schedulers it is `step` and `scale_model_input` alone. "With
set-up" adds what is done once a run: planning, and `set_timesteps`. Compare ratios, not microseconds.
"""


def main(out: Out = None) -> None:
    """Time the solvers themselves, with a free denoiser, beside diffusers' schedulers in the same run."""
    write(out, lambda: page())


if __name__ == "__main__":
    typer.run(main)
