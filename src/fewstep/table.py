"""Every solver with what is claimed of it, and every grid: what the command line, docs/numerics.md and the tests know.

A solver that is not here, or whose claim does not hold, fails the tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from . import grid
from .grid import Grid
from .schedule import EDM, Flow, Schedule, VPLinear
from .solvers import (
    CAB,
    DDIM,
    DEIS,
    DPM2,
    ERA,
    ERSDE,
    IPNDM,
    PNDM,
    REAB,
    RES,
    SEEDS,
    STORK,
    AnalyticDPM,
    DPMSolver,
    DPMSolverPP,
    DPMSolverV3,
    EVODiff,
    FDPMSolver,
    GradientEstimation,
    Heun,
    REMulti,
    REMultiV3,
    RESingle,
    SASolver,
    SciRE,
    SDEDPMSolverPP,
    Solver,
    Stochastic,
    UniPC,
)
from .statistics import EMS, Gamma

__all__ = ["CASES", "FAMILIES", "GRIDS", "GRID_FAMILIES", "SOLVERS", "Entry", "call"]

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

    def suited(self, flow: bool) -> Solver:
        """In the form for a flow, or for the rest."""
        return self.on_flow if flow else self.solver

    @property
    def stochastic(self) -> bool:
        return len(self.orders) == 3


# Of no model: with these, which suit any shape and schedule, DPM-Solver-v3 is DPM-Solver++ with v3's corrector, and
# Analytic-DPM is exact for N(0, I / 4).
EMS_OF_NO_MODEL, GAMMA_OF_NO_MODEL = EMS.constant(), Gamma.gaussian()

SOLVERS: dict[str, Entry] = {
    "evodiff": Entry(EVODiff(), (3.99, 4.07, 3.93, 3.47, 3.47, 3.46), 1, 4, "least squares in closed form"),
    "evodiff-published": Entry(
        EVODiff("published"), (1.20, 0.98, 0.97, 1.24, 0.97, 0.94), 1, 2, "goldens: EVODiff's code"
    ),
    "evodiff-whole": Entry(
        EVODiff("published", channel_dim=None), (1.21, 0.98, 0.97, 1.26, 0.96, 0.95), 1, 2, "evodiff"
    ),
    "evodiff-corrected": Entry(
        EVODiff("published", lower_order_final=False),
        (0.98, 0.98, 0.97, 0.96, 0.97, 0.94),
        1,
        2,
        "goldens: EVODiff's code",
    ),
    "evodiff-paper": Entry(EVODiff(mode="paper"), (3.01, 2.99, 3.00, 2.39, 2.35, 2.47), 1, 2, "Algorithm 1 by hand"),
    "evodiff-eta": Entry(
        EVODiff(mode="paper", zeta=1.0), (3.01, 2.99, 3.00, 2.39, 2.35, 2.47), 1, 2, "re_multi; Algorithm 1 by hand"
    ),
    "evodiff-zeta": Entry(
        EVODiff(mode="paper", eta=0.5), (3.00, 2.99, 2.98, 2.37, 2.33, 2.45), 1, 2, "re_multi; Algorithm 1 by hand"
    ),
    "fd-single": Entry(
        RESingle(gamma=0.0), (2.95, 2.96, 2.94, 2.41, 2.38, 2.49), 2, 2, "eq. (3.7)", RESingle("data", gamma=0.0)
    ),
    "re-single": Entry(
        RESingle(), (0.95, 0.95, 0.93, 0.95, 0.95, 0.93), 2, 2, "goldens: DPM-Solver's code", RESingle("data")
    ),
    "re-single-data": Entry(RESingle("data"), (0.95, 0.96, 0.94, 0.95, 0.96, 0.94), 2, 2, "eq. (4.1)"),
    "fd-multi": Entry(REMulti(zeta=1.0), (2.05, 2.04, 2.06, 2.05, 2.04, 2.06), 1, 1, "eq. (4.4)"),
    "re-explicit": Entry(REMulti(), (0.99, 0.97, 0.96, 0.99, 0.97, 0.95), 1, 1, "eq. (4.7)"),
    "re-implicit": Entry(REMulti(eta=1.0), (1.06, 1.04, 1.04, 1.06, 1.04, 1.04), 1, 2, "eq. (4.7)"),
    "re-balanced": Entry(REMulti(eta=0.5), (1.03, 1.01, 1.00, 1.03, 1.00, 1.00), 1, 3, "eq. (4.8)"),
    "ddim": Entry(DDIM(), (0.99, 0.99, 0.99, 0.99, 0.99, 0.99), 1, 0, "goldens: diff-sampler's Euler"),
    "dpmpp-1": Entry(DPMSolverPP(order=1), (0.99, 0.99, 0.99, 0.99, 0.99, 0.99), 1, 0, "goldens: DPM-Solver's code"),
    "dpmpp-2m": Entry(DPMSolverPP(order=2), (2.00, 2.00, 2.00, 2.00, 2.00, 2.00), 1, 1, "goldens: DPM-Solver's code"),
    "dpmpp-2m-taylor": Entry(
        DPMSolverPP(order=2, variant="taylor"), (2.01, 2.01, 2.01, 2.01, 2.01, 2.01), 1, 1, "goldens: DPM-Solver's code"
    ),
    "dpmpp-3m": Entry(DPMSolverPP(order=3), (2.03, 2.03, 2.04, 2.03, 2.02, 2.04), 1, 2, "goldens: DPM-Solver's code"),
    "dpmpp-2s": Entry(
        DPMSolverPP(order=2, method="singlestep"),
        (1.99, 1.99, 1.99, 1.99, 1.99, 1.99),
        2,
        2,
        "goldens: DPM-Solver's code",
    ),
    "dpmpp-3s": Entry(
        DPMSolverPP(order=3, method="singlestep"),
        (2.95, 2.96, 2.93, 2.97, 2.98, 2.96),
        3,
        3,
        "goldens: DPM-Solver's code",
    ),
    "dpm-solver-2": Entry(
        DPMSolver(order=2),
        (2.00, 2.00, 2.00, 2.00, 2.00, 2.00),
        1,
        1,
        "goldens: DPM-Solver's code",
        DPMSolverPP(order=2),
    ),
    "dpm-solver-3": Entry(
        DPMSolver(order=3),
        (2.00, 2.00, 2.00, 2.01, 2.00, 2.02),
        1,
        2,
        "goldens: DPM-Solver's code",
        DPMSolverPP(order=3),
    ),
    "dpm-solver-2s": Entry(
        DPMSolver(order=2, method="singlestep"),
        (2.01, 2.01, 2.01, 2.01, 2.01, 2.01),
        2,
        2,
        "goldens: DPM-Solver's code",
        DPMSolverPP(order=2, method="singlestep"),
    ),
    "dpm-solver-3s": Entry(
        DPMSolver(order=3, method="singlestep"),
        (3.05, 3.05, 3.06, 3.04, 3.04, 3.06),
        3,
        3,
        "goldens: DPM-Solver's code",
        DPMSolverPP(order=3, method="singlestep"),
    ),
    "dpm2": Entry(
        DPM2(),
        (2.01, 2.01, 2.01, 2.01, 2.01, 2.01),
        2,
        2,
        "goldens: diff-sampler's dpm2",
        DPMSolverPP(order=2, method="singlestep"),
    ),
    "ddpm": Entry(DDIM(eta=1.0), (0.98, 0.98, 0.97), 1, 0, "diffusers' DDIM and DDPM"),
    "sde-dpmpp-1": Entry(SDEDPMSolverPP(order=1), (0.98, 0.98, 0.97), 1, 0, "diffusers' DPM-Solver"),
    "sde-dpmpp-2m": Entry(SDEDPMSolverPP(order=2), (1.99, 2.00, 1.99), 1, 1, "diffusers' DPM-Solver"),
    "sde-dpmpp-3m": Entry(SDEDPMSolverPP(order=3), (2.03, 2.02, 2.04), 1, 2, "diffusers, but for a sign"),
    "unipc-2": Entry(UniPC(order=2), (3.00, 2.79, 2.99, 3.00, 2.77, 3.00), 1, 3, "goldens: UniPC's code"),
    "unipc-2-bh1": Entry(
        UniPC(order=2, variant="bh1"), (3.03, 2.96, 3.03, 3.03, 2.94, 3.03), 1, 3, "goldens: UniPC's code"
    ),
    "unipc-3": Entry(UniPC(order=3), (3.86, 3.31, 3.80, 3.60, 3.35, 3.44), 1, 4, "goldens: UniPC's code"),
    "unipc-3-bh1": Entry(
        UniPC(order=3, variant="bh1"), (3.88, 3.22, 3.80, 3.60, 3.27, 3.44), 1, 4, "goldens: UniPC's code"
    ),
    "unipc-3-noise": Entry(
        UniPC(order=3, field="noise"),
        (3.29, 4.25, 4.03, 3.28, 4.02, 3.8),
        1,
        4,
        "goldens: UniPC's code",
        UniPC(order=3),
    ),
    "unipc-1": Entry(UniPC(order=1), (2.00, 2.00, 2.00, 2.00, 2.00, 2.00), 1, 2, "diffusers' UniPC"),
    "unipc-4": Entry(UniPC(order=4), (4.12, 5.37, 4.99, 4.84, 5.03, 5.02), 1, 5, "diffusers' UniPC"),
    "unipc-2-vary": Entry(
        UniPC(order=2, variant="vary"), (3.01, 2.87, 3.01, 3.01, 2.85, 3.01), 1, 3, "goldens, but for slips in them"
    ),
    "unipc-3-vary": Entry(
        UniPC(order=3, variant="vary"), (3.87, 3.28, 3.80, 3.60, 3.32, 3.44), 1, 4, "goldens, but for slips in them"
    ),
    "unip-2": Entry(UniPC(order=2, no_corrector="all"), (2.00, 2.00, 2.00, 2.00, 2.00, 2.00), 1, 1, "diffusers' UniPC"),
    "unip-3": Entry(UniPC(order=3, no_corrector="all"), (3.49, 3.58, 3.98, 3.11, 3.21, 3.24), 1, 2, "diffusers' UniPC"),
    "deis-2": Entry(
        DEIS(order=2), (1.97, 1.97, 1.97, 1.97, 1.97, 1.97), 1, 1, "goldens: diff-sampler's", DEIS(2, field="velocity")
    ),
    "deis-3": Entry(
        DEIS(order=3), (2.94, 2.94, 2.94, 2.94, 2.94, 2.93), 1, 2, "goldens: diff-sampler's", DEIS(3, field="velocity")
    ),
    "deis-4": Entry(
        DEIS(order=4), (3.83, 4.09, 3.82, 3.72, 4.08, 3.83), 1, 3, "goldens: diff-sampler's", DEIS(4, field="velocity")
    ),
    "deis-rho-3": Entry(
        DEIS(order=3, variant="rhoab"),
        (2.90, 2.91, 2.88, 2.90, 2.91, 2.88),
        1,
        2,
        "goldens: diff-sampler's",
        DEIS(3, "rhoab", "velocity"),
    ),
    "deis-rho-4": Entry(
        DEIS(order=4, variant="rhoab"),
        (3.79, 3.83, 3.78, 3.79, 3.84, 3.78),
        1,
        3,
        "goldens: diff-sampler's",
        DEIS(4, "rhoab", "velocity"),
    ),
    "deis-log-rho-2": Entry(
        DEIS(order=2, variant="logrhoab"),
        (1.99, 1.99, 1.98, 1.99, 1.99, 1.98),
        1,
        1,
        "goldens: diffusers' DEIS",
        DEIS(2, field="velocity"),
    ),
    "deis-log-rho-3": Entry(
        DEIS(order=3, variant="logrhoab"),
        (3.29, 3.49, 3.97, 3.02, 3.04, 3.05),
        1,
        2,
        "goldens: diffusers' DEIS",
        DEIS(3, field="velocity"),
    ),
    "pndm": Entry(
        PNDM(), (2.01, 2.01, 2.01, 2.01, 2.01, 2.01), 4, 5, "goldens: diffusers' PNDM", PNDM(field="velocity")
    ),
    "s-pndm": Entry(
        PNDM(order=2, warmup="heun"),
        (2.00, 2.00, 2.00, 2.00, 2.00, 2.00),
        2,
        2,
        "definition",
        PNDM(2, "heun", "velocity"),
    ),
    "plms": Entry(
        PNDM(warmup="heun"),
        (2.01, 2.01, 2.01, 2.01, 2.01, 2.01),
        2,
        3,
        "goldens: diffusers' PNDM",
        PNDM(4, "heun", "velocity"),
    ),
    "ipndm-2": Entry(
        IPNDM(order=2),
        (2.00, 2.00, 2.00, 2.00, 2.00, 2.00),
        1,
        1,
        "goldens: diff-sampler's",
        IPNDM(2, field="velocity"),
    ),
    "ipndm-3": Entry(
        IPNDM(order=3),
        (1.99, 1.99, 1.98, 1.99, 1.99, 1.98),
        1,
        2,
        "goldens: diff-sampler's",
        IPNDM(3, field="velocity"),
    ),
    "ipndm-4": Entry(
        IPNDM(), (2.01, 2.01, 2.01, 2.01, 2.01, 2.01), 1, 3, "goldens: diff-sampler's", IPNDM(field="velocity")
    ),
    "ipndm-4-velocity": Entry(IPNDM(field="velocity"), (2.02, 2.02, 2.04, 2.02, 2.01, 2.04), 1, 3, "definition"),
    "ipndm-v-3": Entry(
        IPNDM(order=3, variable=True),
        (2.90, 2.91, 2.88, 2.90, 2.91, 2.88),
        1,
        2,
        "goldens, but for slips in them",
        IPNDM(3, True, "velocity"),
    ),
    "ipndm-v-4": Entry(
        IPNDM(variable=True),
        (3.79, 3.83, 3.78, 3.79, 3.84, 3.78),
        1,
        3,
        "goldens, but for slips in them",
        IPNDM(4, True, "velocity"),
    ),
    "heun": Entry(Heun(), (2.01, 2.01, 2.02, 2.01, 2.01, 2.02), 2, 2, "goldens: EDM's Heun", Heun(field="velocity")),
    "heun-churn": Entry(
        Heun(s_churn=40, s_tmin=0.05, s_tmax=50),
        (1.87, 1.87, 1.88),
        2,
        2,
        "EDM's Algorithm 2 by hand",
        Heun(field="velocity", s_churn=40, s_tmin=0.05, s_tmax=50),
    ),
    "heun-velocity": Entry(Heun(field="velocity"), (2.00, 2.00, 2.00, 1.99, 1.99, 1.99), 2, 2, "definition"),
    "dpm-solver-v3-1": Entry(
        DPMSolverV3(EMS_OF_NO_MODEL, order=1),
        (0.99, 0.99, 0.99, 0.99, 0.99, 0.99),
        1,
        0,
        "goldens: DPM-Solver-v3's code",
    ),
    "dpm-solver-v3-2": Entry(
        DPMSolverV3(EMS_OF_NO_MODEL, order=2, corrector_pseudo=True),
        (1.83, 1.85, 1.75, 1.84, 1.85, 1.78),
        1,
        3,
        "goldens: DPM-Solver-v3's code",
    ),
    "dpm-solver-v3-3": Entry(
        DPMSolverV3(EMS_OF_NO_MODEL), (3.21, 3.33, 3.82, 3.21, 3.39, 3.29), 1, 3, "goldens: DPM-Solver-v3's code"
    ),
    "dpm-solver-v3-3-pseudo": Entry(
        DPMSolverV3(EMS_OF_NO_MODEL, corrector_pseudo=True),
        (1.96, 1.96, 1.94, 1.96, 1.96, 1.94),
        1,
        4,
        "goldens: DPM-Solver-v3's code",
    ),
    "re-v3": Entry(REMultiV3(EMS_OF_NO_MODEL), (1.04, 1.01, 1.02, 1.04, 1.01, 1.02), 1, 1, "eq. (4.7) in v3's terms"),
    "re-v3-implicit": Entry(
        REMultiV3(EMS_OF_NO_MODEL, eta=1.0), (1.05, 1.03, 1.04, 1.05, 1.03, 1.04), 1, 2, "eq. (4.7) in v3's terms"
    ),
    "re-v3-balanced": Entry(
        REMultiV3(EMS_OF_NO_MODEL, eta=0.5), (1.04, 1.02, 1.03, 1.04, 1.02, 1.03), 1, 3, "eq. (4.8) in v3's terms"
    ),
    "analytic-dpm": Entry(AnalyticDPM(GAMMA_OF_NO_MODEL), (1.00, 1.00, 1.00), 1, 0, "exact on Gaussians"),
    "analytic-ddim": Entry(AnalyticDPM(GAMMA_OF_NO_MODEL, eta=0.0), (1.00, 1.00, 1.00), 1, 0, "exact on Gaussians"),
    "scire-v1-2": Entry(
        SciRE("v1"), (0.94, 0.95, 0.92, 0.94, 0.95, 0.92), 1, 1, "goldens: SciRE-Solver's code", SciRE("v2")
    ),
    "scire-v1-3": Entry(
        SciRE("v1", order=3),
        (0.92, 0.92, 0.89, 0.91, 0.92, 0.89),
        1,
        2,
        "goldens: SciRE-Solver's code",
        SciRE("v2", order=3),
    ),
    "scire-v1-2s": Entry(
        SciRE("v1", "singlestep"),
        (1.00, 1.00, 1.00, 1.00, 1.00, 1.00),
        2,
        2,
        "goldens: SciRE-Solver's code",
        SciRE("v2", "singlestep"),
    ),
    "scire-v1-3s": Entry(
        SciRE("v1", "singlestep", 3),
        (0.97, 0.97, 0.96, 0.97, 0.97, 0.96),
        3,
        2,
        "goldens: SciRE-Solver's code",
        SciRE("v2", "singlestep", 3),
    ),
    "scire-v2-2": Entry(SciRE("v2"), (1.06, 1.06, 1.08, 1.06, 1.06, 1.08), 1, 1, "goldens: SciRE-Solver's code"),
    "scire-v2-3": Entry(
        SciRE("v2", order=3), (0.91, 0.92, 0.88, 0.91, 0.92, 0.87), 1, 2, "goldens: SciRE-Solver's code"
    ),
    "scire-v2-2s": Entry(
        SciRE("v2", "singlestep"), (1.00, 1.00, 1.00, 1.00, 1.00, 1.00), 2, 2, "goldens: SciRE-Solver's code"
    ),
    "scire-v2-3s": Entry(
        SciRE("v2", "singlestep", 3), (1.04, 1.03, 1.05, 1.04, 1.03, 1.05), 3, 2, "goldens: SciRE-Solver's code"
    ),
    "era": Entry(ERA(), (1.60, 1.97, 2.02, 1.60, 1.97, 2.01), 1, 10, "definition", ERA(field="velocity")),
    "sa-solver": Entry(SASolver(), (1.99, 1.98, 1.98), 1, 3, "goldens: SA-Solver's code"),
    "sa-solver-tau0": Entry(SASolver(tau=0.0), (3.88, 3.22, 3.80, 3.60, 3.27, 3.44), 1, 3, "goldens: SA-Solver's code"),
    "sa-solver-pece": Entry(SASolver(mode="PECE"), (2.00, 1.99, 2.00), 2, 3, "goldens: SA-Solver's code"),
    "sa-solver-pece-tau0": Entry(
        SASolver(tau=0.0, mode="PECE"), (3.82, 3.10, 3.76, 3.51, 3.10, 3.44), 2, 3, "goldens: SA-Solver's code"
    ),
    "gradient-estimation": Entry(
        GradientEstimation(),
        (0.95, 0.96, 0.94, 0.95, 0.96, 0.94),
        1,
        1,
        "smalldiffusion's samples, gam=2",
        GradientEstimation(field="velocity"),
    ),
    "cab-2": Entry(CAB(), (1.93, 1.94, 1.91, 1.93, 1.94, 1.91), 1, 2, "CAB's code by hand", CAB(field="velocity")),
    "cab-2-half": Entry(
        CAB(theta=0.5), (1.87, 1.89, 1.82, 1.87, 1.89, 1.83), 1, 2, "CAB's code by hand", CAB(2, 0.5, "velocity")
    ),
    "cab-3": Entry(
        CAB(order=3), (1.89, 1.90, 1.86, 1.89, 1.90, 1.85), 1, 2, "CAB's code by hand", CAB(3, field="velocity")
    ),
    "res-multistep": Entry(
        RES(), (2.01, 2.01, 2.01, 2.01, 2.01, 2.01), 1, 1, "ComfyUI's rule by hand", RES(clock="sigma")
    ),
    "res-3m": Entry(RES(order=3), (3.61, 3.51, 4.02, 3.11, 3.16, 3.24), 1, 2, "unip-3", RES(order=3, clock="sigma")),
    "res-2s": Entry(
        RES(method="singlestep"), (2.00, 2.00, 2.00, 2.00, 2.00, 2.00), 2, 2, "dpmpp-2s, its other variant"
    ),
    "res-3s": Entry(RES(order=3, method="singlestep"), (2.97, 2.97, 2.96, 3.01, 3.01, 3.01), 3, 3, "order conditions"),
    "stork-2": Entry(
        STORK(), (1.96, 1.96, 1.94, 1.96, 1.96, 1.94), 1, 1, "STORK's rule by hand", STORK(field="velocity")
    ),
    "stork-4": Entry(
        STORK(order=4, derivatives=2),
        (2.90, 2.91, 2.88, 2.90, 2.91, 2.88),
        1,
        2,
        "ipndm-v-3",
        STORK(4, 2, "velocity"),
    ),
    "reab-2": Entry(REAB(), (2.00, 2.00, 2.00, 2.01, 2.01, 2.01), 1, 1, "exact on Gaussians"),
    "reab-3": Entry(REAB(order=3), (2.98, 2.98, 2.99, 3.01, 3.02, 3.04), 1, 2, "exact on Gaussians"),
    "f-dpm": Entry(FDPMSolver(), (0.94, 0.95, 0.92, 0.94, 0.95, 0.92), 1, 1, "definition"),
    "exp-heun": Entry(
        SEEDS(r=1.0, variant="taylor", eta=0.0), (1.99, 1.99, 1.99, 1.99, 1.99, 1.99), 2, 1, "definition"
    ),
    "exp-heun-sde": Entry(SEEDS(r=1.0, variant="taylor"), (1.95, 1.96, 1.94), 2, 1, "definition"),
    "seeds-2": Entry(SEEDS(), (1.98, 1.98, 1.97), 2, 1, "definition"),
    "seeds-3": Entry(SEEDS(order=3), (1.84, 1.86, 1.79), 3, 2, "definition"),
    "er-sde-1": Entry(ERSDE(order=1), (0.99, 0.99, 0.99), 1, 0, "ER-SDE's code by hand"),
    "er-sde-2": Entry(ERSDE(order=2), (2.02, 2.02, 2.03), 1, 1, "ER-SDE's code by hand"),
    "dpmpp-2m-eta": Entry(Stochastic(DPMSolverPP(2), 0.5), (2.00, 2.00, 1.99), 1, 1, "sde-dpmpp-2m"),
    "unipc-2-eta": Entry(Stochastic(UniPC(2), 0.5), (2.33, 2.31, 2.38), 1, 2, "sde-dpmpp-2m, corrected"),
    "res-3s-eta": Entry(Stochastic(RES(3, "singlestep"), 0.5), (2.94, 2.95, 2.92), 3, 3, "definition"),
    "er-sde-3": Entry(ERSDE(), (2.07, 2.06, 2.09), 1, 2, "ER-SDE's code by hand"),
}

# What each kind of solver is for.
FAMILIES: Mapping[type[Any], str] = {
    EVODiff: "the default here, for 5 to 20 calls; as published to reproduce the paper, as printed to study it",
    RESingle: "the EVODiff papers' iterations of two calls, to study them",
    REMulti: "the EVODiff papers' iterations of one call, to study them",
    REMultiV3: "the same in DPM-Solver-v3's terms; needs `fewstep estimate ems`",
    DDIM: "the simplest, of first order; with eta=1 DDPM, which draws noise at every step",
    DPMSolverPP: "the usual choice with guidance: 2M and 3M, or single steps of several calls",
    DPMSolver: "its predecessor, which predicts noise; meant for no or little guidance",
    SDEDPMSolverPP: "DPM-Solver++ with noise on the way, for more calls",
    UniPC: "few calls: a corrector that costs no call adds an order",
    DEIS: "few calls: Adams-Bashforth on noise, in time or in a rescaled noise level",
    PNDM: "the first scheduler of Stable Diffusion; its first steps cost more calls",
    IPNDM: "few calls: PNDM without costlier first steps",
    Heun: "EDM's reference, to converge in many calls; with churn it draws noise",
    DPM2: "two calls a step, the second within it",
    DPMSolverV3: "few calls on a model that is measured first; needs `fewstep estimate ems`",
    AnalyticDPM: "DDPM and DDIM with the model's own variance; needs `fewstep estimate gamma`",
    SciRE: "recursive differences of noise; multistep, or single steps of several calls",
    ERA: "models that err: each sample chooses which predictions it extrapolates from",
    SASolver: "noise on the way, tau of it, with a corrector; for more calls",
    GradientEstimation: "few calls: Euler that overshoots, known by this name in ComfyUI",
    CAB: "few calls, with guidance too: Adams-Bashforth that overshoots by what surprised it",
    RES: "res_multistep of ComfyUI; RES4LYF's single steps, without their noise",
    STORK: "Adams-Bashforth in the flow's time, as its stabilised rules come to",
    REAB: "few calls on data of known spread: extrapolates what a Gaussian does not explain",
    FDPMSolver: "of first order, with DDIM's error of the other sign",
    SEEDS: "noise on the way in single steps; with r=1 exponential Heun, with noise or without",
    Stochastic: "EVODiff(), or a linear solver in denoised images or single steps, with as much noise as is asked for",
    ERSDE: "noise on the way, little of it at the end: er_sde of ComfyUI",
}

GRID_FAMILIES: Mapping[str, Mapping[str, Grid]] = {
    "by formula, on any schedule": {
        "focused": grid.focused,
        "log-snr": grid.log_snr,
        "log-snr-2": grid.log_snr(order=2),
        "karras": grid.karras,
        "kl-optimal": grid.kl_optimal,
        "scire-nsr": grid.scire_nsr,
        "time-uniform": grid.time_uniform,
        "time-quadratic": grid.time_quadratic,
        "beta": grid.beta,
    },
    "as pipelines space the clock": {
        "linspace": grid.linspace,
        "leading": grid.leading(offset=1),
        "trailing": grid.trailing,
        "linear-quadratic": grid.linear_quadratic,
    },
    "by the names of ComfyUI and RES4LYF": {
        "simple": grid.simple,
        "normal": grid.normal,
        "sgm-uniform": grid.sgm_uniform,
        "ddim-uniform": grid.ddim_uniform,
        "beta57": grid.beta57,
        "bong-tangent": grid.bong_tangent,
        "laplace": grid.laplace,
    },
    "found by a search, here or by others for their models": {
        "dm-nonuniform": grid.dm_nonuniform,
        "ays-sd15": grid.ays(model="sd15"),
        "ays-sdxl": grid.ays(model="sdxl"),
        "ays-svd": grid.ays(model="svd"),
        "gits-sd15": grid.gits(model="sd15"),
        "gits-cifar10": grid.gits(model="cifar10"),
    },
}
GRIDS: dict[str, Grid] = {name: each for family in GRID_FAMILIES.values() for name, each in family.items()}


def call(solver: Any) -> str:
    """The shortest constructor call that makes `solver`; statistics, which are of a model, as a name."""
    changed = [
        f.name if f.name == "statistics" else f"{f.name}={getattr(solver, f.name)!r}"
        for f in fields(solver)
        if getattr(solver, f.name) != f.default
    ]
    return f"{type(solver).__name__}({', '.join(changed)})"
