"""Problems whose denoiser, and sometimes whose sampling ODE, is known exactly; and a trained model beside them."""

from .base import Problem
from .empirical import Empirical
from .mixtures import ClassGaussians, GaussianMixture, fitted, gaussian
from .products import Product, product
from .suite import PROBLEMS, SPLITS, Entry, Source, Split

__all__ = [
    "PROBLEMS",
    "SPLITS",
    "ClassGaussians",
    "Empirical",
    "Entry",
    "GaussianMixture",
    "Problem",
    "Product",
    "Source",
    "Split",
    "fitted",
    "gaussian",
    "product",
]
