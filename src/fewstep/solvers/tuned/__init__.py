"""A plan that was measured on a model, as a solver: `measured` has its numbers, `solver` runs and keeps them."""

from .measured import Measured, Numbers
from .solver import Outcome, Tuned

__all__ = ["Measured", "Numbers", "Outcome", "Tuned"]
