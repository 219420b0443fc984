"""DPM-Solver-v3, the RE multistep in its coordinates, and the integrals over a model's statistics that both need."""

from .re_v3 import REMultiV3
from .solver import DPMSolverV3

__all__ = ["DPMSolverV3", "REMultiV3"]
