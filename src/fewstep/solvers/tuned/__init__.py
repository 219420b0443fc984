"""A plan that was measured on a model, as a solver: `measured` has its numbers, `solver` runs and keeps them."""

from .measured import Measured, Numbers
from .solver import VERSION, Outcome, Tuned

__all__ = ["VERSION", "Measured", "Numbers", "Outcome", "Tuned"]
