"""A small model, and commands on it."""

import pytest

from cli.commands import run
from tiny import save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def sample(model, tmp_path):
    """`fewstep sample` with few calls and images, into a folder of the test's own unless another is given."""

    def call(*args, n=4, nfe=2, out=tmp_path / "samples"):
        return run("sample", "--model", model, "--n", n, "--nfe", nfe, "--out", out, *args)

    return call


@pytest.fixture
def compare(model, tmp_path):
    def call(*args, n=2, nfe="1,3", solvers="ddim,heun", out=tmp_path / "compare.png"):
        return run("compare", "--model", model, "--n", n, "--nfe", nfe, "--solvers", solvers, "--out", out, *args)

    return call
