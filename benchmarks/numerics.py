"""The page docs/numerics.md: measured orders, costs, and the measurements that defaults rest on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import typer
from torch import Tensor

from fewstep.adapters import EDMModel
from fewstep.bench.compare import CONVERGED_NFE, Counted, converged
from fewstep.bench.markdown import table
from fewstep.grid import Grid, karras, log_snr
from fewstep.sampling import plan, sample, unit_noise
from fewstep.schedule import EDM, Discrete, Flow, Schedule, VPLinear
from fewstep.solvers import DDIM, DPMSolverPP, EVODiff, Solver, UniPC
from fewstep.solvers.core.base import euler_row
from fewstep.solvers.evodiff import published as evodiff_published
from fewstep.table import CASES, SOLVERS, Entry

from . import last_steps
from .command import Out, packaged, say, write
from .orders import STEPS, convergence, covariance_convergence, fitted_order, reference, start
from .problems import gaussian

__all__ = ["measured_orders", "page", "state_tensors", "wide_order"]

LAST_STEP_SCHEDULES: Mapping[str, Schedule] = {
    "EDM, log-SNR to σ_min": EDM(),
    "VP, log-SNR to t_min": VPLinear(),
    "Stable Diffusion's table, time-uniform to 0": Discrete(
        np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2).tolist()
    ),
    "flow, shift 3, time-uniform to 0": Flow(shift=3.0),
}
WIDEST, WIDE_STEPS = 12.0, STEPS[:3]  # data that are not small beside EDM's sigma_max of 80
BUDGETS = (5, 8, 12)
IMAGES = 32
SEED = 1000


def page(model: EDMModel, say: Callable[[str], object]) -> str:
    """The page as Markdown. `say` is told what is being measured."""
    say("orders of convergence ...")
    told = {"steps": ", ".join(map(str, STEPS)), "widest": WIDEST, "wide_steps": ", ".join(map(str, WIDE_STEPS))}
    parts = [INTRODUCTION.format(**told), _orders()]
    say("ends of the grid and orders of the last steps, on the packaged model ...")
    parts += [ENDS.format(images=IMAGES, converged=CONVERGED_NFE), _ends(model), READING]
    say("the order of the last step, on exact problems ...")
    parts += [CHOSEN, last_steps.page(), READING_CHOSEN]
    say("the last step of published EVODiff ...")
    parts += [LAST_STEP, _last_steps()]
    return "\n".join(parts)


def _orders() -> str:
    rows = []
    for name, entry in SOLVERS.items():
        orders = [f"{order:.2f}" for order in measured_orders(entry)]
        wide = "–" if entry.stochastic else f"{wide_order(entry.solver):.2f}"
        rows.append(
            [name, f"`{entry.solver!r}`", str(entry.solver.calls_per_step), str(state_tensors(entry.solver))]
            + orders
            + ["–"] * (len(CASES) - len(orders))
            + [wide, repr(entry.solver.grid), entry.reference]
        )
    cases = (name for name, _, _ in CASES)
    head = [
        "name",
        "solver",
        "calls a step",
        "state, tensors",
        *cases,
        "wide Gaussian, EDM",
        "recommended grid",
        "compared with",
    ]
    return table(head, rows)


def measured_orders(entry: Entry) -> list[float]:
    """One for each case; for a stochastic solver those of its covariance, on the Gaussians."""
    found = []
    for _, schedule, components in CASES[: len(entry.orders)]:
        if entry.stochastic:
            errors = covariance_convergence(entry.solver, schedule)
        else:
            errors = convergence(entry.solver, schedule, gaussian(components=components))
        found.append(fitted_order(STEPS, errors))
    return found


def wide_order(solver: Solver) -> float:
    """On a Gaussian whose widest directions are a seventh of the noise at the start."""
    return fitted_order(WIDE_STEPS, convergence(solver, EDM(), gaussian(widest=WIDEST), WIDE_STEPS))


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
        "2": (DPMSolverPP(2, final_order=2), DPMSolverPP(3, final_order=2), UniPC(3, final_order=2)),
        "3": (DPMSolverPP(3, final_order=3), UniPC(3, final_order=3)),
        "chosen (default)": (DPMSolverPP(2), DPMSolverPP(3), UniPC(3)),
        "-": (DDIM(), EVODiff("published"), EVODiff("paper")),
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
    return table(["solver", "final order", *(f"{nfe}: {end}" for nfe in BUDGETS for end in ends)], rows)


def _last_steps() -> str:
    problem = gaussian(components=3, seed=5)
    rows = []
    for name, schedule in LAST_STEP_SCHEDULES.items():
        for nfe in BUDGETS:
            nodes, stages = plan(schedule, EVODiff(mode="published"), nfe=nfe)
            last = len(nodes) - 1 - (nodes[-1].sigma == 0)  # the last noisy node
            s, t = nodes[last - 1 : last + 1]
            # Stages are data: the step before the last noisy node can be exchanged.
            before, stage, after = stages[: last - 1], stages[last - 1], stages[last:]
            assert isinstance(stage, evodiff_published.Stage)
            ddim = euler_row("data", s, t)
            variants = (
                stage._replace(move=evodiff_published.printed_final(s, t), predict=None),
                stage._replace(move=ddim, predict=None),
                stage._replace(move=ddim, predict=evodiff_published.second(nodes, last - 1, last)),
            )
            x = start(problem, nodes[0])
            denoiser = problem.denoiser(schedule)
            exact = reference(problem, schedule, x, nodes[0], nodes[-1])
            errors = []
            for variant in variants:
                got, state = x, None
                for each in (*before, variant, *after):
                    got, state = each(state, got, denoiser(got, each.node.time))
                errors.append(f"{(got - exact).square().mean().sqrt().item():.3f}")
            rows.append([name, str(nfe), *errors])
    return table(["schedule", "calls", "as printed", "DDIM", "predicted, uncorrected"], rows)


def _short(solver: Solver) -> str:
    if isinstance(solver, DPMSolverPP):
        return f"DPM-Solver++ {solver.order}M"
    if isinstance(solver, UniPC):
        return f"UniPC-{solver.order} {solver.variant}"
    return f"EVODiff, {solver.mode}" if isinstance(solver, EVODiff) else type(solver).__name__


INTRODUCTION = """# Numerics

For people who must rely on a solver's order, or compare ours with another's code. You get every configuration with
its measured orders, cost and state, and what the tests hold it against.

Every figure on this page was measured by `make numerics`, which writes it.

## Orders of convergence

The slope of log error over log steps, fitted over {steps} steps on a grid uniform in log-SNR from t_max to t_min, in
float64. The problems are an anisotropic Gaussian in 32 dimensions, whose sampling ODE is solved in closed form, and an
equal mixture of two, where the solution is that of UniPC-3 in 10,000 steps. A denoiser that is exact leaves nothing
but the solver's own error. All these data are small beside the noise at the start, 80 on EDM, where a first step of
order 1 costs next to nothing; where they are not, it costs an error of h² that no later step mends. "wide Gaussian" has
standard deviations of 0.03 to {widest:g}, on EDM over {wide_steps} steps: there multistep methods that begin with such
a step fall towards order 2. For a stochastic solver the figure is the order of its standard deviations on the
Gaussian, computed without sampling (on a Gaussian a run is linear in the noise that it draws).

The name is the one that the command line knows; calls a step are the most that one step costs; the state is what is
kept between calls, x apart. "uniform", where a solver has no grid of its own, is `fewstep.uniform`: log-SNR on EDM and
VP, time on tables and flows. "clock_quadratic" is DEIS's own, on VP that of `time_quadratic`. Both are what these
solvers take when no grid is given. The flow is run from σ = 0.999: from pure noise solvers that predict noise need
`field="velocity"`. "Compared with" says what the tests hold the solver against: goldens are numbers that other people's
code produced.
"""
ENDS = """
How to read it. The Gaussian can flatter: over the whole range of noise, on a grid uniform in log-SNR, the h² errors
of `EVODiff(mode="paper")` and of FD single steps cancel and leave order 3. On the mixture their order falls towards 2
as steps shorten. DPM-Solver++ 3M, as published, takes half of the second-derivative term and is of order 2
(`solvers/core/exponential.py`); UniPC-3 stays between 3 and 4 because its last two steps are lowered. UniPC-2 falls
below 3 on VP: in long runs its last step there is of order 1, the choice that cannot harm where data are sharp, and
leaves half more of an error of 1e-7. iPNDM and PNDM use the weights of equal steps in σ / α, which steps are not; SciRE
divides by a φ that does not tend to 1; the RE iterations weigh their second-order term by a prior that tends to 1/2.
Published EVODiff is of order 1 with its last step left out (`lower_order_final=False`): its factors do not tend to
those of a second-order rule. With it, on EDM, it does not converge: the printed last step leaves an error of about
σ_min, and a fitted 1.2 is that floor meeting the rest from the other side. The paper's Theorem 4.6 claims second order;
Algorithm 1 as printed reaches it in our reading, the published code does not. DPM-Solver-v3, `re-v3` and Analytic-DPM
are measured with stand-in statistics of no model (`EMS.constant()`, `Gamma.gaussian()`), with which v3 is DPM-Solver++
with v3's corrector; with statistics of a model no order was measured.

## How a run should end

RMSE per pixel to the converged solution ({converged} calls of UniPC-3) on the packaged model, {images} images with
classes, no guidance. "To 0" spends the last call on a closing denoise at σ_min; "final order" is the order of the step
into the last noisy node.
"""
READING = """
How to read it. At EDM's σ_min = 0.002 a call is worth more as a step than as a closing denoise, so grids end at t_min
where the noise left there does not show (below two grey levels), and close at 0 elsewhere. On the ρ grid, whose last
steps are the longest in log-SNR, solvers that extrapolate far suffer, and in few calls low orders are better. The
choice, of the next section, is 1 in all of these cases: right on the ρ grid in 5 and 8 calls, and elsewhere at most a
quarter worse than the best, where little depends on it.
"""
CHOSEN = """
## The order of the last step

Where `final_order` is None, the default, the order of the last step is found by a simulation on Gaussians and on pairs
of sharp modes, before any call and without the model (`solvers/core/last_steps.py`). This is what it is worth on other
data: six random pixels, each of its own mixture, whose ODE is solved exactly, modes of width 0.3 to 1 of their distance
(smooth) or 0.03 to 0.2 (sharp). For stochastic solvers it is the error of the standard deviations of a Gaussian
("spread"), of other ones than the simulation has. The cases are all of EDM, VP (linear and cosine), Stable Diffusion's
table and a flow of shift 3, six grids, to the lowest noise and to 0, in 5, 8, 12 and 20 steps, in which the order
matters: RMSE with the chosen order over that with order 1 and with order 2, in geometric mean; order 2 over order 1,
the old default, at worst; and over the best of the orders below the chosen one.
"""
READING_CHOSEN = """
How to read it. Order 2 in a long last step is up to 90 times worse than order 1; the choice is nowhere more than 5 %
worse than a lower order. What predicts noise is harder to foretell: at low noise it says the less of the next level the
sharper the data is, and no Gaussian is as sharp as one mode among others. The order that cannot harm there is often 1,
and on smooth data a fixed order can be better: DEIS extrapolates in σ / α or the clock, of which a last step is a small
part, so that `DEIS(3, final_order=3)` gains a fifth on smooth data in few calls and loses up to a third on sharp. Of
solvers that draw noise the last four steps may have a lower order: where that leaves less error on all Gaussians, and
on those that are no wider than the data. Were data four times as wide as the schedule says, up to 7 % of the cases
would be worse by more than 5 %.
"""
LAST_STEP = """
## The last step of published EVODiff

The authors' code knows EDM only. Its step into the last noisy node multiplies the image by 1 - sqrt(σ_t σ_s), which is
small on EDM's range. Read in σ / α on other schedules it is not: RMSE to the solution on a mixture of three Gaussians,
with that step as printed, as DDIM, and as a prediction that no call corrects. `EVODiff(mode="published")` takes the
printed step where α = 1, as the authors do, unless it would darken by half, and DDIM elsewhere.
"""


def main(out: Out = None) -> None:
    """Measure the order of convergence of every solver, and what the choices in the code rest on."""
    write(out, lambda: page(packaged(), say))


if __name__ == "__main__":
    typer.run(main)
