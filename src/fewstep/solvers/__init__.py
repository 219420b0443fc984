"""The solvers: one algorithm, one file, one page. `base` says what they share."""

from .base import Solver, Stage
from .ddim import DDIM
from .dpmpp import DPMSolverPP
from .evodiff import EVODiff
from .heun import Heun
from .unipc import UniPC

__all__ = ["DDIM", "DPMSolverPP", "EVODiff", "Heun", "Solver", "Stage", "UniPC"]
