from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

import fewstep as fs
from benchmarks.problems import ClassGaussians, Problem, gaussian
from benchmarks.variance import BUDGETS, MEASURED, NAMES, RELATED, RULE, SAMPLES, TRIED, VARIANTS, LeastVariance, ratios
from fewstep.solvers.evodiff.path_prior import PathPrior

PAGE = Path(__file__).parents[2] / "docs" / "least-variance.md"
SHAPE = (3, 4, 4)


def smooth():
    mixture = gaussian(SHAPE)
    return Problem("smooth", SHAPE, 0, lambda seeds: ClassGaussians(mixture, (0,) * len(seeds)), steps=None, samples=8)


def test_without_a_change_it_is_the_default():
    for schedule in (fs.EDM(), fs.Flow()):
        nodes = fs.focused(schedule, 7)
        assert LeastVariance().plan(schedule, nodes) == fs.EVODiff().plan(schedule, nodes)


def test_every_variant_changes_something():
    """Of answers that go on changing, of those that jump and stay, and of points of a sphere, decided late."""
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def smooth(x, t):
        return x / (1 + x * x + t * t)

    def sharp(x, t):
        return 3 * torch.tanh(9 * x / (1 + t))

    def sphere(x, t):
        return 2 * x / (x.norm(dim=1, keepdim=True) + t)

    def drawn(solver, grid=None):
        run = partial(fs.sample, noise=x, nfe=6, solver=solver, grid=grid, schedule=fs.EDM())
        return torch.cat([run(smooth), run(sharp), run(sphere)])

    default = drawn(fs.EVODiff())
    for name, (solver, grid) in VARIANTS.items():
        assert (drawn(solver, grid) - default).abs().max() > 1e-5, name


def test_ratios_are_to_the_default():
    problem = smooth()
    found = ratios(problem)
    assert list(found) == list(VARIANTS)
    schedule, seeds = fs.EDM(), range(8)
    exact = problem.solution(schedule, seeds)

    def error(nfe, solver):
        got = fs.sample(problem.denoiser(schedule, seeds), problem.noise(seeds), nfe=nfe, solver=solver)
        return (got - exact).square().mean().sqrt().item()

    less = LeastVariance(replace(PathPrior(), surprise=0.0))
    product = 1.0
    for nfe in BUDGETS:
        product *= error(nfe, less) / error(nfe, fs.EVODiff())
    assert found["Gaussian data, no surprise"] == pytest.approx(product ** (1 / len(BUDGETS)), rel=1e-5)


def test_the_page_has_every_variant_on_every_problem():
    rows = [line.strip("| ").split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    assert rows[0] == ["changed", *NAMES]
    assert [row[0] for row in rows[2:]] == list(VARIANTS)
    assert all(float(value) > 0 for row in rows[2:] for value in row[1:])


def test_the_page_has_the_words_of_the_module_that_writes_it():
    text = PAGE.read_text(encoding="utf-8")
    assert text.startswith(RULE + MEASURED.format(samples=SAMPLES, calls=", ".join(map(str, BUDGETS))))
    assert text.endswith(TRIED + RELATED)
