"""A small model, and commands on it."""

from contextlib import contextmanager

import pytest

from cli.commands import run
from fewstep.adapters.unet2d import EDMModel
from tiny import save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def interrupted(monkeypatch):
    """Within `interrupted(n)` Ctrl+C comes at the n-th evaluation of a model, and a model goes on after it."""

    @contextmanager
    def at(n):
        evaluate, calls = EDMModel._evaluate, []

        def counted(self, *args):
            calls.append(1)
            if len(calls) == n:
                raise KeyboardInterrupt
            return evaluate(self, *args)

        with monkeypatch.context() as patch:
            patch.setattr(EDMModel, "_evaluate", counted)
            yield

    return at


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
