"""Calls that cost less: half precision and small weights, and reuse of features where it pays. docs/cheaper.md."""

from .cache import Cached, CacheError
from .cuts import depths
from .planning import CachePlan, Trial, every, plan_cache
from .precision import half, load, quantized, save
from .report import Difference, difference

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
]
