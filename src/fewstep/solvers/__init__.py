"""The solvers: one algorithm, one file, one page. `core` is what they share."""

from .analytic import AnalyticDPM
from .cab import CAB
from .core.base import Solver, Stage
from .ddim import DDIM
from .deis import DEIS
from .dpm2 import DPM2
from .dpm_solver import DPMSolver, DPMSolverPP
from .dpm_solver_v3 import DPMSolverV3, REMultiV3
from .er_sde import ERSDE
from .era import ERA
from .evodiff import EVODiff
from .fdpm import FDPMSolver
from .gradient import GradientEstimation
from .heun import Heun
from .ipndm import IPNDM
from .pndm import PNDM
from .re_multi import REMulti
from .re_single import RESingle
from .reab import REAB
from .res import RES
from .sa import SASolver
from .scire import SciRE
from .sde_dpmpp import SDEDPMSolverPP
from .seeds import SEEDS
from .stochastic import Stochastic
from .stork import STORK
from .tuned import Tuned
from .unipc import UniPC

__all__ = [
    "CAB",
    "DDIM",
    "DEIS",
    "DPM2",
    "ERA",
    "ERSDE",
    "IPNDM",
    "PNDM",
    "REAB",
    "RES",
    "SEEDS",
    "STORK",
    "AnalyticDPM",
    "DPMSolver",
    "DPMSolverPP",
    "DPMSolverV3",
    "EVODiff",
    "FDPMSolver",
    "GradientEstimation",
    "Heun",
    "REMulti",
    "REMultiV3",
    "RESingle",
    "SASolver",
    "SDEDPMSolverPP",
    "SciRE",
    "Solver",
    "Stage",
    "Stochastic",
    "Tuned",
    "UniPC",
]
