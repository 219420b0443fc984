"""What noise levels are worth to the scheduler: a run of the bench is a run of fewstep."""

from pathlib import Path

import pytest
import torch

import fewstep as fs

pytest.importorskip("diffusers", reason="needs the extra diffusers")

from benchmarks import levels
from benchmarks.problems.network import Reclocked
from fewstep.integrations.diffusers import EVODiffScheduler

PAGE = Path(__file__).parents[2] / "docs" / "levels.md"


class Gaussians:
    """As an EDM model: N(0, 1/4) in every pixel, whatever the class and the guidance."""

    schedule, shape, classes = fs.EDM(), (3, 4, 4), ("a", "b")

    def conditioned(self, labels, guidance):
        assert len(labels) == levels.IMAGES
        assert set(labels) == {0, 1}
        return lambda x, t: x * 0.25 / (0.25 + t**2)


@pytest.mark.parametrize("name", levels.MODELS)
def test_more_calls_come_nearer_on_the_focused_levels(name):
    found = levels.rmses(Gaussians(), levels.MODELS[name])
    assert list(found) == [(each, solver) for each in levels.LEVELS for solver in levels.SOLVERS]
    for solver in levels.SOLVERS:
        few, *_, many = found["focused", solver]
        assert many < few / 4
        assert many < found["the config's", solver][-1]


@pytest.mark.parametrize("name", levels.MODELS)
def test_a_pull_is_what_the_library_draws(name):
    scheduler = EVODiffScheduler(solver="unipc-2", use_focused_sigmas=True, **levels.MODELS[name])
    law = Reclocked(Gaussians().conditioned([0, 1] * 8, 2.0), fs.EDM())
    noise = fs.unit_noise(range(16), (3, 4, 4), dtype=torch.float64)
    pulled = levels._pulled(scheduler, law, noise, 6)
    nodes = scheduler._nodes
    by_time = {node.time: node for node in nodes}
    solver = fs.UniPC(order=2)
    pushed = fs.integrate(
        lambda x, t: law.denoised(x, by_time[t]), noise, nodes, solver=solver, schedule=scheduler._schedule
    )
    torch.testing.assert_close(pulled, pushed, rtol=1e-5, atol=1e-5)  # sigmas are float32


def test_the_page_has_every_row():
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    for model in levels.MODELS:
        assert f"## {model}" in lines
    for name in levels.LEVELS:
        for solver in levels.SOLVERS:
            assert sum(line.startswith(f"| {name} | {solver} |") for line in lines) == len(levels.MODELS)
