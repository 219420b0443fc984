import math

import pytest
import torch
from hypothesis import settings

from fewstep.solvers.core.planned import forget
from fewstep.solvers.evodiff import trust

settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _without_plans():
    """What a test puts in place of a number or a function, no plan that is kept has seen."""
    forget()


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Small tensors: a second thread costs more than it brings, most of all beside other processes."""
    torch.set_num_threads(1)


@pytest.fixture
def free_end(monkeypatch):
    """The default's last prediction is not bounded, as that of a tuned plan is not."""
    monkeypatch.setattr(trust, "LEFT", math.inf)


@pytest.fixture
def two_threads():
    """For what a second thread might change."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)
