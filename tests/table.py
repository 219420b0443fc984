"""The table of solvers as a parameter of tests."""

import pytest

from fewstep.table import SOLVERS

ORDER_BAND = 0.15

every_solver = pytest.mark.parametrize("entry", SOLVERS.values(), ids=SOLVERS.keys())
deterministic = {name: entry for name, entry in SOLVERS.items() if not entry.stochastic}
stochastic = {name: entry for name, entry in SOLVERS.items() if entry.stochastic}
every_deterministic = pytest.mark.parametrize("entry", deterministic.values(), ids=deterministic.keys())
every_stochastic = pytest.mark.parametrize("entry", stochastic.values(), ids=stochastic.keys())
