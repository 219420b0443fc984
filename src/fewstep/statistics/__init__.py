"""What some solvers need to know of a model: `tables` keeps it, `estimate` makes it."""

from .estimate import estimate_ems, estimate_gamma
from .tables import EMS, Gamma, describe, fingerprint, load_statistics

__all__ = ["EMS", "Gamma", "describe", "estimate_ems", "estimate_gamma", "fingerprint", "load_statistics"]
