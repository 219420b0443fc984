"""The solvers, with what is claimed of each: one table feeds all common tests."""

from dataclasses import dataclass

import pytest

from fewstep import DDIM, DPMSolverPP, EVODiff, Heun, Solver, UniPC


@dataclass(frozen=True)
class Entry:
    """`gaussian` and `mixture`: orders measured on EDM (docs/numerics.md); `state`: tensors kept between calls."""

    solver: Solver
    gaussian: float
    mixture: float
    state: int
    flow: Solver | None = None  # where a flow, which starts at alpha = 0, needs another form

    @property
    def on_flow(self) -> Solver:
        return self.flow or self.solver


TABLE = {
    "ddim": Entry(DDIM(), 0.99, 0.99, state=0),
    "dpmpp-1": Entry(DPMSolverPP(order=1), 0.99, 0.99, state=0),
    "dpmpp-2m": Entry(DPMSolverPP(order=2), 2.00, 2.00, state=1),
    "dpmpp-2m-taylor": Entry(DPMSolverPP(order=2, variant="taylor"), 2.01, 2.01, state=1),
    "dpmpp-3m": Entry(DPMSolverPP(order=3), 2.03, 2.03, state=2),
    "unipc-2": Entry(UniPC(order=2), 3.00, 3.00, state=3),
    "unipc-2-bh1": Entry(UniPC(order=2, variant="bh1"), 3.02, 3.02, state=3),
    "unipc-3": Entry(UniPC(order=3), 3.86, 3.60, state=4),
    "unipc-3-bh1": Entry(UniPC(order=3, variant="bh1"), 3.88, 3.60, state=4),
    "unipc-3-noise": Entry(UniPC(order=3, field="noise"), 4.04, 3.81, state=4, flow=UniPC(order=3)),
    "heun": Entry(Heun(), 2.01, 2.01, state=2, flow=Heun(field="velocity")),
    "heun-velocity": Entry(Heun(field="velocity"), 2.00, 1.99, state=2),
    "evodiff": Entry(EVODiff(), 1.20, 1.24, state=2),
    "evodiff-whole": Entry(EVODiff(channel_dim=None), 1.2, 1.2, state=2),
    "evodiff-corrected": Entry(EVODiff(lower_order_final=False), 0.98, 0.98, state=2),
    "evodiff-paper": Entry(EVODiff(mode="paper"), 3.01, 2.39, state=2),
}
ORDER_BAND = 0.15

every_solver = pytest.mark.parametrize("entry", TABLE.values(), ids=TABLE.keys())
