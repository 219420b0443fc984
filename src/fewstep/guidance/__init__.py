"""Denoisers made of denoisers: guidance, thresholding and clipping, for any solver.

Each carries the schedule of what it is made of, and can be pickled if that can. A scale is one for all, or one a
sample; that of `cfgpp` is one for all.
"""

from .base import Batched
from .classifier import classifier_guided
from .free import apg, cfgpp, guidance_interval, guided, rescaled
from .limits import clip, magnitude, threshold

__all__ = [
    "Batched", "apg", "cfgpp", "classifier_guided", "clip", "guidance_interval", "guided", "magnitude", "rescaled",
    "threshold",
]  # fmt: skip
