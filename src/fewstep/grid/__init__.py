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
from .entropic import entropic
from .frontends import beta57, bong_tangent, ddim_uniform, laplace, normal, sgm_uniform, simple
from .nonuniform import dm_nonuniform
from .snapped import snapped
from .spacings import beta, leading, linear_quadratic, linspace, trailing
from .tables import ays, gits

__all__ = [
    "Grid",
    "GridFunction",
    "ays",
    "beta",
    "beta57",
    "bong_tangent",
    "checked",
    "ddim_uniform",
    "dm_nonuniform",
    "entropic",
    "focused",
    "from_times",
    "gits",
    "karras",
    "kl_optimal",
    "laplace",
    "leading",
    "linear_quadratic",
    "linspace",
    "log_snr",
    "normal",
    "scire_nsr",
    "sgm_uniform",
    "simple",
    "snapped",
    "time_quadratic",
    "time_uniform",
    "trailing",
    "uniform",
]
