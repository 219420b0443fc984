"""Calls that cost less: half precision, small weights, fewer products, reuse of features. docs/cheaper.md."""

from .cache import Cached, CacheError
from .cuts import depths
from .planning import CachePlan, Trial, every, plan_cache
from .precision import half, load, quantized, save
from .report import Difference, difference
from .winograd import winograd

__all__ = [
    "CacheError",
    "CachePlan",
    "Cached",
    "Difference",
    "Trial",
    "depths",
    "difference",
    "every",
    "half",
    "load",
    "plan_cache",
    "quantized",
    "save",
    "winograd",
]
