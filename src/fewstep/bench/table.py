"""Every solver with what is claimed of it: the one list behind the command line, docs/numerics.md and the tests.

A solver that is not here, or whose claim does not hold, fails the tests.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..schedule import EDM, Flow, Schedule, VPLinear
from ..solvers import DDIM, DPMSolverPP, EVODiff, Heun, Solver, UniPC

__all__ = ["CASES", "SOLVERS", "Entry"]

# Schedule and number of Gaussian components of the problems on which orders are measured.
CASES: tuple[tuple[str, Schedule, int], ...] = (
    ("Gaussian, EDM", EDM(), 1),
    ("Gaussian, VP", VPLinear(), 1),
    ("Gaussian, flow", Flow(), 1),
    ("mixture, EDM", EDM(), 2),
    ("mixture, VP", VPLinear(), 2),
    ("mixture, flow", Flow(), 2),
)


@dataclass(frozen=True)
class Entry:
    """What is claimed of `solver`.

    orders: measured, one a case; for a stochastic solver those of its covariance, on the Gaussians alone.
    calls: the most that one step costs. state: tensors of the image's size kept between calls, x apart.
    reference: what the solver is compared with in the tests, or the definition that it is checked against.
    flow: the form for flows, which start at alpha = 0, where the solver itself cannot.
    """

    solver: Solver
    orders: tuple[float, ...]
    calls: int
    state: int
    reference: str
    flow: Solver | None = None

    @property
    def on_flow(self) -> Solver:
        return self.flow or self.solver

    @property
    def stochastic(self) -> bool:
        return len(self.orders) == 3


SOLVERS: dict[str, Entry] = {
    "evodiff": Entry(EVODiff(), (1.20, 0.98, 0.97, 1.24, 0.97, 0.97), 1, 2, "goldens: EVODiff's code"),
    "evodiff-whole": Entry(EVODiff(channel_dim=None), (1.2, 0.98, 0.97, 1.2, 0.97, 0.97), 1, 2, "evodiff"),
    "evodiff-corrected": Entry(
        EVODiff(lower_order_final=False), (0.98, 0.98, 0.97, 0.96, 0.97, 0.97), 1, 2, "goldens: EVODiff's code"
    ),
    "evodiff-paper": Entry(EVODiff(mode="paper"), (3.01, 2.99, 3.00, 2.39, 2.35, 2.47), 1, 2, "Algorithm 1 by hand"),
    "ddim": Entry(DDIM(), (0.99, 0.99, 0.99, 0.99, 0.99, 0.99), 1, 0, "goldens: diff-sampler's Euler"),
    "dpmpp-1": Entry(DPMSolverPP(order=1), (0.99, 0.99, 0.99, 0.99, 0.99, 0.99), 1, 0, "goldens: DPM-Solver's code"),
    "dpmpp-2m": Entry(DPMSolverPP(order=2), (2.00, 2.00, 2.00, 2.00, 2.00, 2.00), 1, 1, "goldens: DPM-Solver's code"),
    "dpmpp-2m-taylor": Entry(
        DPMSolverPP(order=2, variant="taylor"), (2.01, 2.01, 2.01, 2.01, 2.01, 2.01), 1, 1, "goldens: DPM-Solver's code"
    ),
    "dpmpp-3m": Entry(DPMSolverPP(order=3), (2.03, 2.03, 2.04, 2.03, 2.03, 2.03), 1, 2, "goldens: DPM-Solver's code"),
    "unipc-2": Entry(UniPC(order=2), (3.00, 3.00, 2.99, 3.00, 3.00, 3.00), 1, 3, "goldens: UniPC's code"),
    "unipc-2-bh1": Entry(
        UniPC(order=2, variant="bh1"), (3.02, 3.02, 3.03, 3.02, 3.02, 3.02), 1, 3, "goldens: UniPC's code"
    ),
    "unipc-3": Entry(UniPC(order=3), (3.86, 3.31, 3.80, 3.60, 3.35, 3.44), 1, 4, "goldens: UniPC's code"),
    "unipc-3-bh1": Entry(
        UniPC(order=3, variant="bh1"), (3.88, 3.22, 3.80, 3.60, 3.27, 3.44), 1, 4, "goldens: UniPC's code"
    ),
    "unipc-3-noise": Entry(
        UniPC(order=3, field="noise"), (4.04, 3.66, 4.09, 3.81, 3.63, 3.8), 1, 4, "goldens: UniPC's code", UniPC(order=3)
    ),
    "heun": Entry(
        Heun(), (2.01, 2.01, 2.02, 2.01, 2.01, 2.01), 2, 2, "goldens: EDM's Heun", Heun(field="velocity")
    ),
    "heun-velocity": Entry(Heun(field="velocity"), (2.00, 2.00, 2.00, 1.99, 1.99, 1.99), 2, 2, "definition"),
}
