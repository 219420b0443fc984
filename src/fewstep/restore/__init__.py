"""Restoring with a pretrained denoiser: a measurement, and the denoiser of what it leaves open. docs/restore.md."""

from .joint import joint
from .measurement import Linear, deblurring, inpainting, superresolution
from .posterior import Method, Posterior, Solve, posterior
from .red_diff import red_diff
from .shifting import Chain, Resfusion, ResShift, centred
from .spectrum import Spectrum

__all__ = [
    "Chain",
    "Linear",
    "Method",
    "Posterior",
    "ResShift",
    "Resfusion",
    "Solve",
    "Spectrum",
    "centred",
    "deblurring",
    "inpainting",
    "joint",
    "posterior",
    "red_diff",
    "superresolution",
]
