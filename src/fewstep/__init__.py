"""EVODiff and its field: good samples from a diffusion model in 5-20 calls, without retraining."""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.2.0"

if TYPE_CHECKING:
    from .api import *  # noqa: F403


def __getattr__(name: str) -> object:
    """The names of `api`, once one is asked for: `fewstep --help`, and files below the solvers, need no torch."""
    api = import_module(".api", __name__)
    globals().update({each: getattr(api, each) for each in api.__all__}, __all__=api.__all__)
    if name not in globals():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *import_module(".api", __name__).__all__})
