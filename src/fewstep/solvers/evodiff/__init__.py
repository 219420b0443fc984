"""EVODiff in its three readings, a file each, and the prior behind the weights of least variance."""

from .solver import EVODiff

__all__ = ["EVODiff"]
