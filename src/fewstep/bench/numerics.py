"""The page docs/numerics.md: measured orders, costs, and the measurements that defaults rest on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..grid import Grid, karras, log_snr
from ..sampling import plan, sample, unit_noise
from ..schedule import EDM, Flow, Schedule, VPLinear
from ..solvers import DDIM, DPMSolverPP, EVODiff, Heun, Solver, UniPC
from .compare import CONVERGED_NFE, Counted, converged
from .orders import STEPS, convergence, fitted_order
from .problems import gaussian

if TYPE_CHECKING:
    from ..adapters import EDMModel

__all__ = ["MEASURED", "page", "state_tensors"]

MEASURED: tuple[Solver, ...] = (
    DDIM(),
    DPMSolverPP(order=2),
    DPMSolverPP(order=2, variant="taylor"),
    DPMSolverPP(order=3),
    UniPC(order=2),
    UniPC(order=2, variant="bh1"),
    UniPC(order=3),
    UniPC(order=3, variant="bh1"),
    UniPC(order=3, field="noise"),
    Heun(),
    Heun(field="velocity"),
    EVODiff(),
    EVODiff(mode="paper"),
)
PROBLEMS: tuple[tuple[str, Schedule, int], ...] = (
    ("Gaussian, EDM", EDM(), 1),
    ("Gaussian, VP", VPLinear(), 1),
    ("Gaussian, flow", Flow(), 1),
    ("mixture, EDM", EDM(), 2),
    ("mixture, VP", VPLinear(), 2),
)
BUDGETS = (5, 8, 12)
IMAGES = 32
SEED = 1000


def page(model: EDMModel, say: Callable[[str], object]) -> str:
    """The page as Markdown. `say` is told what is being measured."""
    say("orders of convergence ...")
    parts = [INTRODUCTION.format(command=COMMAND, steps=", ".join(map(str, STEPS))), _orders()]
    say("ends of the grid and orders of the last steps, on the packaged model ...")
    parts += [ENDS.format(images=IMAGES, converged=CONVERGED_NFE), _ends(model), READING]
    return "\n".join(parts)


def _orders() -> str:
    rows = []
    for solver in MEASURED:
        fitted = []
        for _, schedule, components in PROBLEMS:
            errors = convergence(solver, schedule, gaussian(components=components))
            fitted.append(f"{fitted_order(STEPS, errors):.2f}")
        rows.append([f"`{solver!r}`", str(solver.calls_per_step), str(state_tensors(solver)), *fitted])
    return _table(["solver", "calls a step", "state, tensors", *(name for name, _, _ in PROBLEMS)], rows)


def state_tensors(solver: Solver) -> int:
    """The most tensors of the image's size that the solver holds between calls, x apart; counted in a run."""
    shape = (2, 3, 8, 8)
    _, stages = plan(EDM(), solver, nfe=24)
    state: Any = None
    x = torch.ones(shape)
    most = 0
    for stage in stages:
        x, state = stage(state, x, torch.full(shape, 0.1))
        held = {t.data_ptr() for t in _tensors(state) if t.numel() == x.numel()} - {x.data_ptr()}
        most = max(most, len(held))
    return most


def _tensors(state: Any) -> Iterable[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, tuple):
        for part in state:
            yield from _tensors(part)


def _ends(model: EDMModel) -> str:
    denoiser = Counted(model.conditioned([i % len(model.classes) for i in range(IMAGES)]))
    noise = unit_noise(range(SEED, SEED + IMAGES), model.shape)
    exact = converged(denoiser, noise, model.schedule)
    solvers: Mapping[str, Sequence[Solver]] = {
        "1": (DPMSolverPP(2, final_order=1), DPMSolverPP(3, final_order=1), UniPC(3, final_order=1)),
        "2 (default)": (DPMSolverPP(2), DPMSolverPP(3), UniPC(3)),
        "3": (DPMSolverPP(3, final_order=3), UniPC(3, final_order=3)),
        "-": (DDIM(), EVODiff(), EVODiff(mode="paper")),
    }
    grids: Sequence[Grid] = (log_snr(to_zero=False), log_snr(to_zero=True), karras(to_zero=False))
    rows = []
    for final_order, group in solvers.items():
        for solver in group:
            name = _short(solver)
            cells = []
            for nfe in BUDGETS:
                for grid in grids:
                    images = sample(denoiser, noise, nfe=nfe, solver=solver, schedule=model.schedule, grid=grid)
                    cells.append(f"{(images - exact).square().mean().sqrt().item():.3f}")
            rows.append([name, final_order, *cells])
    ends = ("log-SNR to σ_min", "log-SNR to 0", "ρ = 7 to σ_min")
    return _table(["solver", "final order", *(f"{nfe}: {end}" for nfe in BUDGETS for end in ends)], rows)


def _short(solver: Solver) -> str:
    if isinstance(solver, DPMSolverPP):
        return f"DPM-Solver++ {solver.order}M"
    if isinstance(solver, UniPC):
        return f"UniPC-{solver.order} {solver.variant}"
    return f"EVODiff, {solver.mode}" if isinstance(solver, EVODiff) else type(solver).__name__


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


COMMAND = "make numerics"
INTRODUCTION = """# Numerics

Every figure on this page was measured by `{command}`, which writes it.

## Orders of convergence

The slope of log error over log steps, fitted over {steps} steps on a grid uniform in log-SNR from t_max to t_min, in
float64. The problems are an anisotropic Gaussian in 32 dimensions, whose sampling ODE is solved in closed form, and an
equal mixture of two, where the solution is that of UniPC-3 in 10,000 steps. A denoiser that is exact leaves nothing
but the solver's own error.
"""
ENDS = """
How to read it. The Gaussian flatters: on a grid uniform in log-SNR its second-order error terms cancel over the whole
run, so that a rule with errors of h² can show order 3 there (`EVODiff(mode="paper")`, whose order on the mixture falls
towards 2). DPM-Solver++ 3M stays at 2 because its first step is of first order, and UniPC-3 between 3 and 4 because
its last two are lowered. Published EVODiff is of order 1: its factors do not tend to those of a second-order rule. The
paper's Theorem 4.6 claims second order; Algorithm 1 as printed reaches it in our reading, the published code does not.

## How a run should end

RMSE per pixel to the converged solution ({converged} calls of UniPC-3) on the packaged model, {images} images with
classes, no guidance. "To 0" spends the last call on a closing denoise at σ_min; "final order" is the order of the step
into the last noisy node.
"""
READING = """
How to read it. At EDM's σ_min = 0.002 a call is worth more as a step than as a closing denoise, so grids end at t_min
where the noise left there does not show (below two grey levels), and close at 0 elsewhere. The highest order into the
last node is best from 8 calls on and the lowest at 5; 2 is the compromise, and keeps the measured order of UniPC-3
at 3.
"""
