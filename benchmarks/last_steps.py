"""The order of the last steps, chosen by the rule of `core.last_steps`, beside the lower and the fixed ones.

The laws are not those that the rule knows: independent pixels, each a random mixture, whose ODE is solved exactly. For
stochastic solvers the error is that of the standard deviations of a Gaussian, of other ones than the rule's.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fewstep.bench.markdown import table
from fewstep.grid import focused, karras, kl_optimal, log_snr, time_quadratic, time_uniform
from fewstep.schedule import DATA_STD, EDM, Discrete, Flow, Node, Schedule, VPCosine, VPLinear
from fewstep.solvers import DEIS, DPMSolver, DPMSolverPP, SASolver, SDEDPMSolverPP, Solver, Stage, UniPC

from .orders import spread_error
from .problems import Product, product

__all__ = ["FAMILIES", "LAWS", "STOCHASTIC", "Ending", "Family", "endings", "page", "ratios"]

SD = Discrete(np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2).tolist(), data_std=DATA_STD)
SCHEDULES: Sequence[Schedule] = (EDM(), VPLinear(), VPCosine(), SD, Flow(shift=3.0))
GRIDS: Sequence[Any] = (log_snr, karras, time_uniform, time_quadratic, kl_optimal, focused)
BUDGETS = (5, 8, 12, 20)
SAMPLES = 24
LAWS: Mapping[str, Product] = {
    "smooth": product(6, 2, (0.3, 1.0), seed=1),
    "sharp": product(6, 3, (0.03, 0.2), seed=2),
}
TOLERANCE = 1.05


class Family(NamedTuple):
    """A solver with each final order, from 1 to `highest`; None is the rule."""

    make: Callable[[int | None], Solver]
    highest: int


FAMILIES: Mapping[str, Family] = {
    "DPM-Solver++ 2M": Family(lambda f: DPMSolverPP(2, final_order=f), 2),
    "DPM-Solver++ 3M": Family(lambda f: DPMSolverPP(3, final_order=f), 3),
    "DPM-Solver 2": Family(lambda f: DPMSolver(2, final_order=f), 2),
    "UniPC-2": Family(lambda f: UniPC(2, final_order=f), 2),
    "UniPC-2 bh1": Family(lambda f: UniPC(2, "bh1", final_order=f), 2),
    "UniPC-3": Family(lambda f: UniPC(3, final_order=f), 3),
    "UniPC-3 noise": Family(lambda f: UniPC(3, field="noise", final_order=f), 3),
    "DEIS-3": Family(lambda f: DEIS(3, final_order=f), 3),
    "DEIS-3 log rho": Family(lambda f: DEIS(3, "logrhoab", final_order=f), 3),
    "SA-Solver, tau 0": Family(lambda f: SASolver(tau=0.0, final_order=f), 3),
}
STOCHASTIC: Mapping[str, Family] = {
    "SA-Solver": Family(lambda f: SASolver(final_order=f), 3),
    "SDE-DPM-Solver++ 2M": Family(lambda f: SDEDPMSolverPP(2, final_order=f), 2),
    "SDE-DPM-Solver++ 3M": Family(lambda f: SDEDPMSolverPP(3, final_order=f), 3),
}


class Ending(NamedTuple):
    """A case of the battery: the errors by the rule and with each final order from 1, and which of these it chose.

    0 stands for a lower one, which the rule has where noise is drawn.
    """

    case: str
    rule: float
    errors: tuple[float, ...]
    chosen: int

    @property
    def excess(self) -> float:
        """The rule's error over that of the best of the orders from 1 to its own, or of 1 where its own is lower."""
        return self.rule / min(self.errors[: max(self.chosen, 1)])


def endings(family: Family, law: Product | None, budgets: Sequence[int] = BUDGETS) -> Iterator[Ending]:
    """Every case in which the final order changes anything; without a law the error of standard deviations."""
    for schedule, grid, to_zero, steps in itertools.product(SCHEDULES, GRIDS, (False, True), budgets):
        if isinstance(schedule, Flow) and getattr(family.make(1), "field", "data") == "noise":
            continue  # which has no step away from alpha = 0
        nodes = grid(schedule, steps, to_zero=to_zero)
        plans = [family.make(order).plan(schedule, nodes) for order in range(1, family.highest + 1)]
        if plans[0] == plans[-1]:
            continue
        rule = family.make(None).plan(schedule, nodes)
        first, *errors = (spread_error(p, nodes) if law is None else _error(p, nodes, law) for p in (rule, *plans))
        name = f"{type(schedule).__name__}, {grid.__name__}, {steps} steps{' to 0' * to_zero}"
        yield Ending(name, first, tuple(errors), plans.index(rule) + 1 if rule in plans else 0)


def _error(stages: Sequence[Stage], nodes: Sequence[Node], law: Product) -> float:
    """The RMSE to the solution."""
    x, exact = _ends(law, nodes[0], nodes[-1])
    state: Any = None
    for stage in stages:
        x, state = stage(state, x, law.denoised(x, stage.node))
    return float((x - exact).square().mean().sqrt())


@functools.cache
def _ends(law: Product, start: Node, end: Node) -> tuple[Tensor, Tensor]:
    """Noise at even quantiles, the same for every pixel, and where it leads."""
    middles = (torch.arange(SAMPLES, dtype=torch.float64) + 0.5) / SAMPLES
    x = start.sigma * torch.special.ndtri(middles)[:, None].expand(-1, len(law.weights))
    return x, law.solution(x, start, end)


def ratios(found: Sequence[Ending], order: int) -> tuple[float, float]:
    """The rule's error over that of a fixed order, in geometric mean and at worst."""
    each = [ending.rule / ending.errors[order - 1] for ending in found]
    return math.exp(sum(map(math.log, each)) / len(each)), max(each)


def page() -> str:
    """The table of docs/numerics.md."""
    rows = []
    laws: Sequence[tuple[str, Product | None]] = tuple(LAWS.items())
    for families, measured in ((FAMILIES, laws), (STOCHASTIC, (("spread", None),))):
        for (name, family), (law_name, law) in itertools.product(families.items(), measured):
            found = list(endings(family, law))
            excesses = [each.excess for each in found]
            over = sum(excess > TOLERANCE for excess in excesses) / len(excesses)
            (mean, worst), (second, _) = (ratios(found, order) for order in (1, 2))
            fixed = max(each.errors[1] / each.errors[0] for each in found)
            figures = (mean, worst, second, fixed, max(excesses))
            rows.append([name, law_name, *(f"{figure:.2f}" for figure in figures), f"{100 * over:.1f} %"])
    head = [
        "solver", "law", "over order 1", "at worst", "over order 2", "order 2 over 1, at worst",
        "over a lower order, at worst", "cases of more than 5 %",
    ]  # fmt: skip
    return table(head, rows)
