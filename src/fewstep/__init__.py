"""EVODiff and its field: good samples from a diffusion model in 5-20 calls, without retraining."""

from .grid import from_times, karras, log_snr, time_quadratic, time_uniform, uniform
from .guidance import clip, guided, threshold
from .prediction import Denoiser, Prediction, as_denoiser, from_denoised, to_denoised
from .sampling import DenoiserError, Step, integrate, sample, trajectory, unit_noise
from .schedule import EDM, Discrete, Flow, Node, Schedule, VPCosine, VPLinear
from .solvers import DDIM, DPMSolverPP, EVODiff, Heun, Solver, UniPC

__version__ = "0.1.0"

__all__ = [
    "DDIM",
    "EDM",
    "DPMSolverPP",
    "Denoiser",
    "DenoiserError",
    "Discrete",
    "EVODiff",
    "Flow",
    "Heun",
    "Node",
    "Prediction",
    "Schedule",
    "Solver",
    "Step",
    "UniPC",
    "VPCosine",
    "VPLinear",
    "as_denoiser",
    "clip",
    "from_denoised",
    "from_times",
    "guided",
    "integrate",
    "karras",
    "log_snr",
    "sample",
    "threshold",
    "time_quadratic",
    "time_uniform",
    "to_denoised",
    "trajectory",
    "uniform",
    "unit_noise",
]
