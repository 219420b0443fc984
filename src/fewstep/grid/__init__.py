"""Step grids: which noise levels to visit. `base` says what a grid is; every grid can be imported from here."""

from .base import (
    Grid,
    GridFunction,
    checked,
    focused,
    from_times,
    karras,
    kl_optimal,
    log_snr,
    scire_nsr,
    time_quadratic,
    time_uniform,
    uniform,
)
from .nonuniform import dm_nonuniform
from .snapped import snapped
from .spacings import beta, leading, linear_quadratic, linspace, trailing
from .tables import ays, gits

__all__ = [
    "Grid",
    "GridFunction",
    "ays",
    "beta",
    "checked",
    "dm_nonuniform",
    "focused",
    "from_times",
    "gits",
    "karras",
    "kl_optimal",
    "leading",
    "linear_quadratic",
    "linspace",
    "log_snr",
    "scire_nsr",
    "snapped",
    "time_quadratic",
    "time_uniform",
    "trailing",
    "uniform",
]
